package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"sync"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/cgroupfile"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/usage"
)

// Unlimited is the value of a limit that is not set.
const Unlimited = usage.Unlimited

// What Stats consists of.
type (
	Stats        = usage.Stats
	CPUStats     = usage.CPU
	MemoryStats  = usage.Memory
	PidsStats    = usage.Pids
	IOStats      = usage.IO
	HugetlbStats = usage.Hugetlb
	Pressure     = usage.Pressure
	PressureLine = usage.Line
)

var statBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 16<<10); return &b }}

// Stats reads all of the group's counters: a dozen of small files. The error matches fs.ErrNotExist when the group is gone.
func (g *Group) Stats() (*Stats, error) { return g.stats(true) }

// MainStats reads what Kubernetes asks for every few seconds: CPU and memory used, memory limits and pressure.
func (g *Group) MainStats() (*Stats, error) { return g.stats(false) }

func (g *Group) stats(all bool) (*Stats, error) {
	buf := statBuffers.Get().(*[]byte)
	defer statBuffers.Put(buf)
	r := reader{g: g, buf: *buf, all: all}
	defer r.leave()
	s := &Stats{}
	if g.host.mode == V2 {
		r.v2(s)
	} else {
		r.v1(s)
	}
	*buf = r.buf[:0]
	if r.err != nil {
		return nil, fmt.Errorf("stats of cgroup %s: %w", g.path, r.err)
	}
	if !r.found {
		if _, err := g.host.Open(g.path); err != nil {
			return nil, fmt.Errorf("stats of cgroup %s: %w", g.path, err)
		}
	}
	return s, nil
}

// reader reads files of a group into one buffer. After an error it reads nothing more.
type reader struct {
	g     *Group
	all   bool
	buf   []byte
	err   error
	found bool // some file was there

	entered *hierarchy // whose folder of the group is open
	dir     sys.DirFD
}

// enter opens the group's folder of a controller of which several files are read: that is as slow as opening one.
func (r *reader) enter(controller string) {
	hi := r.hierarchy(controller)
	if hi == nil || r.err != nil || hi == r.entered {
		return
	}
	r.leave()
	if dir, err := hi.root.Dir(r.g.rel); err == nil { // else the files are looked for, and say what is wrong
		r.entered, r.dir = hi, dir
	}
}

func (r *reader) leave() {
	if r.entered != nil {
		r.dir.Close()
		r.entered = nil
	}
}

func (r *reader) hierarchy(controller string) *hierarchy {
	if r.g.host.mode == V2 {
		return r.g.host.primary
	}
	return r.g.host.byName[controller]
}

// file returns the content of a file, nil when the group has no such controller or file. It is valid until the next call.
func (r *reader) file(controller, name string) []byte {
	hi := r.hierarchy(controller)
	if hi == nil || r.err != nil {
		return nil
	}
	dir, path := hi.root, name
	if hi == r.entered {
		dir = r.dir
	} else {
		path = r.g.rel + "/" + name
	}
	b, err := dir.ReadWhole(path, r.buf[:0])
	r.buf = b
	switch {
	case err == nil:
		r.found = true
		return b
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EOPNOTSUPP):
		// EOPNOTSUPP: PSI switched off, swap accounting off.
	default:
		r.err = fmt.Errorf("read %s: %w", hi.file(r.g.rel, name), err)
	}
	return nil
}

// number reads a file that holds one number or "max"; otherwise is returned when it is not there.
func (r *reader) number(controller, name string, otherwise uint64) uint64 {
	if n, ok := cgroupfile.Uint(r.file(controller, name)); ok {
		return n
	}
	return otherwise
}

// less is a-b, not below 0: two counters are never read at the same moment.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// device finds or appends the entry of major:minor, given as text.
func device(io *[]IOStats, name []byte) *IOStats {
	a, b, ok := bytes.Cut(name, []byte{':'})
	if !ok {
		return nil
	}
	major, ok1 := cgroupfile.Uint(a)
	minor, ok2 := cgroupfile.Uint(b)
	if !ok1 || !ok2 {
		return nil
	}
	for i := range *io {
		if d := &(*io)[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	*io = append(*io, IOStats{Major: major, Minor: minor})
	return &(*io)[len(*io)-1]
}

// parsePressure reads a PSI file; nil when it is empty.
func parsePressure(b []byte) *Pressure {
	var p *Pressure
	cgroupfile.Lines(b, func(line []byte) {
		kind, rest, _ := bytes.Cut(line, []byte{' '})
		var l PressureLine
		for f := range bytes.SplitSeq(rest, []byte{' '}) {
			k, v, _ := bytes.Cut(f, []byte{'='})
			switch string(k) {
			case "avg10":
				l.Avg10, _ = strconv.ParseFloat(string(v), 64)
			case "avg60":
				l.Avg60, _ = strconv.ParseFloat(string(v), 64)
			case "avg300":
				l.Avg300, _ = strconv.ParseFloat(string(v), 64)
			case "total":
				l.TotalMicros, _ = cgroupfile.Uint(v)
			}
		}
		if p == nil && (string(kind) == "some" || string(kind) == "full") {
			p = &Pressure{}
		}
		switch string(kind) {
		case "some":
			p.Some = l
		case "full":
			p.Full = l
		}
	})
	return p
}
