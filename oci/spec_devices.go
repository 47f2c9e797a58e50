package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// maxDevices bounds what one directory of devices may expand to.
const maxDevices = 4096

func deviceRule(typ string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: typ, Major: &major, Minor: &minor, Access: access}
}

// devices adds those of the client. Privileged: all of the host's /dev, and the control group allows all (CRI, 6 and 7).
func (b *builder) devices(ctx context.Context) error {
	if b.sec.Privileged {
		b.deviceRules = cgroup.AllDevices()
	} else {
		b.deviceRules = append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, cgroup.DefaultDevices()...)
	}
	if len(b.ctr.Devices) == 0 && !b.sec.Privileged {
		return nil
	}
	for i, d := range b.ctr.Devices {
		if err := checkDevice(i, d); err != nil {
			return err
		}
	}
	found := make([][]hostDevice, len(b.ctr.Devices))
	var all []hostDevice
	err := b.bounded(ctx, func(now func(string)) (err error) {
		if b.sec.Privileged {
			now("/dev")
			if all, err = hostDevices("/dev", "/dev", false, nil); err != nil {
				return err
			}
		}
		for i, d := range b.ctr.Devices {
			now(fmt.Sprintf("devices[%d].host_path %q", i, d.HostPath))
			if found[i], err = clientDevice(i, d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, list := range found {
		access := b.ctr.Devices[i].Permissions
		if access == "" {
			access = "rwm"
		}
		for _, d := range list {
			all = append(all, d)
			if !b.sec.Privileged {
				b.deviceRules = append(b.deviceRules, deviceRule(d.Type, d.Major, d.Minor, access))
			}
		}
	}
	all = lastOfEach(all)
	b.spec.Linux.Devices = make([]specs.LinuxDevice, len(all))
	for i, d := range all {
		b.spec.Linux.Devices[i] = d.LinuxDevice
		if d.host != d.Path {
			if b.built.HostNodes == nil {
				b.built.HostNodes = map[string]string{}
			}
			b.built.HostNodes[d.Path] = d.host
		}
	}
	return nil
}

// hostDevice is a device and where its node is on the host.
type hostDevice struct {
	specs.LinuxDevice
	host string
}

// lastOfEach keeps the last device of each path: one that the client puts there replaces the host's.
func lastOfEach(in []hostDevice) []hostDevice {
	at := make(map[string]int, len(in))
	out := in[:0]
	for _, d := range in {
		if i, ok := at[d.Path]; ok {
			out[i] = d
			continue
		}
		at[d.Path] = len(out)
		out = append(out, d)
	}
	return out
}

func checkDevice(i int, d workload.Device) error {
	if !filepath.IsAbs(d.HostPath) {
		return fieldf(indexf("devices", i, "host_path"), "%q is not an absolute path", d.HostPath)
	}
	if d.ContainerPath != "" && !filepath.IsAbs(d.ContainerPath) {
		return fieldf(indexf("devices", i, "container_path"), "%q is not an absolute path", d.ContainerPath)
	}
	if strings.Trim(d.Permissions, "rwm") != "" {
		return fieldf(indexf("devices", i, "permissions"), "%q is not made of r, w and m", d.Permissions)
	}
	return nil
}

func clientDevice(i int, d workload.Device) ([]hostDevice, error) {
	field := indexf("devices", i, "host_path")
	host, err := filepath.EvalSymlinks(d.HostPath)
	if err != nil {
		return nil, &pathError{field: field, path: d.HostPath, err: err}
	}
	target := path.Clean(d.ContainerPath)
	if d.ContainerPath == "" {
		target = path.Clean(d.HostPath)
	}
	n, err := sys.StatNode(host)
	if err != nil {
		return nil, &pathError{field: field, path: d.HostPath, err: err}
	}
	if n.IsDir() {
		list, err := hostDevices(host, target, true, nil)
		if err != nil {
			return nil, &FieldError{Field: field, Err: err}
		}
		if len(list) == 0 {
			return nil, fieldf(field, "%q: no device in this directory", d.HostPath)
		}
		return list, nil
	}
	dev, ok := linuxDevice(n, host, target)
	if !ok {
		return nil, fieldf(field, "%q is neither a device nor a directory", d.HostPath)
	}
	return []hostDevice{dev}, nil
}

// skippedDirs are not devices to pass on: file systems that a container has of its own, and what other container
// managers and udev keep there.
var skippedDirs = map[string]bool{
	"pts": true, "shm": true, "fd": true, "mqueue": true, ".lxc": true, ".lxd-mounts": true, ".udev": true,
}

// hostDevices lists the character and block devices below dir, as target and what follows in the container. With links,
// one that leads to a device in /dev is that device, as in /dev/dri/by-path; else they are left out.
func hostDevices(dir, target string, links bool, out []hostDevice) ([]hostDevice, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := e.Name()
		host, inside := filepath.Join(dir, name), path.Join(target, name)
		switch {
		case e.IsDir():
			if skippedDirs[name] {
				continue
			}
			if out, err = hostDevices(host, inside, links, out); err != nil {
				return nil, err
			}
		case links && e.Type()&fs.ModeSymlink != 0:
			if d, ok := linkedDevice(host, inside); ok {
				out = append(out, d)
			}
		case e.Type()&fs.ModeDevice == 0 || name == "console": // the container has its own console
		default:
			n, err := sys.StatNode(host)
			if errors.Is(err, fs.ErrNotExist) { // unplugged meanwhile
				continue
			}
			if err != nil {
				return nil, err
			}
			if d, ok := linuxDevice(n, host, inside); ok {
				out = append(out, d)
			}
		}
		if len(out) > maxDevices {
			return nil, fmt.Errorf("%s: more than %d devices", dir, maxDevices)
		}
	}
	return out, nil
}

// linkedDevice is the device that a link leads to. One that leads out of /dev is none: whoever may make a link in a
// directory for devices is not thereby to choose from the whole host.
func linkedDevice(link, target string) (hostDevice, bool) {
	host, err := filepath.EvalSymlinks(link)
	if err != nil || !strings.HasPrefix(host, "/dev/") {
		return hostDevice{}, false
	}
	n, err := sys.StatNode(host)
	if err != nil {
		return hostDevice{}, false
	}
	return linuxDevice(n, host, target)
}

func linuxDevice(n sys.Node, host, target string) (hostDevice, bool) {
	d := hostDevice{host: host, LinuxDevice: specs.LinuxDevice{
		Path: target, Major: int64(n.Major), Minor: int64(n.Minor), UID: &n.UID, GID: &n.GID,
	}}
	switch n.Type() {
	case sys.ModeChar:
		d.Type = "c"
	case sys.ModeBlock:
		d.Type = "b"
	default:
		return d, false
	}
	mode := os.FileMode(n.Perm())
	d.FileMode = &mode
	return d, true
}
