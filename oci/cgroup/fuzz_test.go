package cgroup

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func FuzzStatParsers(f *testing.F) {
	f.Add([]byte("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 rbytes=9\n"))
	f.Add([]byte("254:0 cost.usage=1 cost.wait=2 cost.indebt=3 cost.indelay=4\n"))
	f.Add([]byte("8:0 Read 4096\n8:0 Write 0\n8:0 Total 4096\nTotal 4096\n"))
	f.Add([]byte("some avg10=1.50 avg60=2.00 avg300=0.10 total=123\nfull avg10=nan total=max\n"))
	f.Add([]byte("a *:* rwm\nc 1:3 rwm\nb *:0 m\n"))
	f.Add([]byte("1\n0\n-4\n99999999999999999999\n12\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines := strings.Count(string(b), "\n") + 1
		var times []IOStats
		parseTimes(&times, "io_service_time", b)
		for _, io := range [][]IOStats{parseIOStat(b), parseBlkio(nil, b, true), parseBlkio(nil, b, false), times} {
			seen := map[[2]uint64]bool{}
			for _, d := range io {
				if k := [2]uint64{d.Major, d.Minor}; seen[k] {
					t.Errorf("device %v twice", k)
				} else {
					seen[k] = true
				}
			}
			if len(io) > lines {
				t.Errorf("%d devices of %d lines", len(io), lines)
			}
		}
		parsePressure(b)
		for _, pid := range appendPids(nil, b) {
			if pid <= 0 {
				t.Errorf("pid %d", pid)
			}
		}
		e := parseDevicesList(b)
		back := parseDevicesList([]byte(strings.Join(e.lines(), "\n")))
		if len(back.perms) != len(e.perms) {
			t.Errorf("%v reads back as %v", e, back)
		}
	})
}

func FuzzValidatePath(f *testing.F) {
	for _, s := range []string{"/a/b", "/../a", "//", "/a\x00", "a", "/a/."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ValidatePath(s) != nil {
			return
		}
		g, err := (&Host{}).group(s)
		if err != nil {
			t.Fatal(err)
		}
		if g.rel == "" || strings.HasPrefix(g.rel, "/") || strings.Contains("/"+g.rel+"/", "/../") || strings.Contains(g.rel, "//") {
			t.Errorf("group(%q) is at %q", s, g.rel)
		}
	})
}

// FuzzResources is a resources.json, as update --resources takes it, and linux.resources of a bundle.
func FuzzResources(f *testing.F) {
	f.Add([]byte(`{"memory":{"limit":1,"swap":-1},"cpu":{"shares":2,"quota":-1,"cpus":"0-3"},"pids":{"limit":5},"unified":{"memory.max":"max"}}`))
	f.Add([]byte(`{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}],"hugepageLimits":[{"pageSize":"2MB","limit":1}]}`))
	f.Add([]byte(`{"unified":{"../x":"1","cgroup.procs":"0"},"rdma":{"../y":{}},"hugepageLimits":[{"pageSize":"../../x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := new(specs.LinuxResources)
		if json.Unmarshal(data, r) != nil {
			return
		}
		for _, mode := range []Mode{V1, V2} {
			p, err := (&Host{mode: mode}).plan(r, func(string, string) (string, error) { return "", nil })
			if err != nil {
				continue
			}
			for _, s := range p.settings {
				if strings.ContainsAny(s.file, "/\x00") || strings.HasPrefix(s.file, "cgroup.") {
					t.Errorf("%s becomes a write of %q to %q", data, s.values, s.file)
				}
			}
		}
	})
}

// FuzzProperties: what systemd is told of limits, in which a client may write values of its own (unified).
func FuzzProperties(f *testing.F) {
	f.Add([]byte(`{"unified":{"memory.max":"max","cpu.max":"1 2","cpuset.cpus":"0-3,7","io.weight":"default 5","io.max":"8:0 rbps=1 wiops=max"}}`))
	f.Add([]byte(`{"unified":{"cpuset.cpus":"0-4294967295","cpuset.mems":"9-1","io.max":"8:0 rbps=1\n8:1 x"},"cpu":{"cpus":"1-2","mems":"0"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := new(specs.LinuxResources)
		if json.Unmarshal(data, r) != nil {
			return
		}
		p, err := (&Host{mode: V2}).plan(r, func(string, string) (string, error) { return "", nil })
		if err != nil {
			return
		}
		for _, property := range p.properties(100000) {
			if property.Name == "" {
				t.Errorf("%s becomes a property without a name", data)
			}
		}
	})
}

// FuzzMountinfo: names of mounts are of whoever mounted.
func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(data), nil)
		if err != nil {
			return
		}
		v1, unified := selectMounts(mounts)
		for _, m := range v1 {
			if len(m.controllers) == 0 {
				t.Errorf("hierarchy %q without a controller", m.mount)
			}
		}
		if unified != "" && !strings.Contains(string(data), "cgroup2") {
			t.Errorf("unified hierarchy at %q", unified)
		}
	})
}
