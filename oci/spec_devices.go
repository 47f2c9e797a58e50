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
	found := make([][]specs.LinuxDevice, len(b.ctr.Devices))
	var all []specs.LinuxDevice
	err := b.bounded(ctx, func(now func(string)) (err error) {
		if b.sec.Privileged {
			now("/dev")
			if all, err = hostDevices("/dev", "/dev", nil); err != nil {
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
	b.spec.Linux.Devices = lastOfEach(all)
	return nil
}

// lastOfEach keeps the last device of each path: one that the client puts there replaces the host's.
func lastOfEach(in []specs.LinuxDevice) []specs.LinuxDevice {
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

func clientDevice(i int, d workload.Device) ([]specs.LinuxDevice, error) {
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
		list, err := hostDevices(host, target, nil)
		if err != nil {
			return nil, &FieldError{Field: field, Err: err}
		}
		if len(list) == 0 {
			return nil, fieldf(field, "%q: no device in this directory", d.HostPath)
		}
		return list, nil
	}
	dev, ok := linuxDevice(n, target)
	if !ok {
		return nil, fieldf(field, "%q is neither a device nor a directory", d.HostPath)
	}
	return []specs.LinuxDevice{dev}, nil
}

// skippedDirs are not devices to pass on: file systems that a container has of its own, and what other container
// managers and udev keep there.
var skippedDirs = map[string]bool{
	"pts": true, "shm": true, "fd": true, "mqueue": true, ".lxc": true, ".lxd-mounts": true, ".udev": true,
}

// hostDevices lists the character and block devices below dir, as target and what follows in the container. Symbolic
// links are left out.
func hostDevices(dir, target string, out []specs.LinuxDevice) ([]specs.LinuxDevice, error) {
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
			if out, err = hostDevices(host, inside, out); err != nil {
				return nil, err
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
			if d, ok := linuxDevice(n, inside); ok {
				out = append(out, d)
			}
		}
		if len(out) > maxDevices {
			return nil, fmt.Errorf("%s: more than %d devices", dir, maxDevices)
		}
	}
	return out, nil
}

func linuxDevice(n sys.Node, target string) (specs.LinuxDevice, bool) {
	d := specs.LinuxDevice{Path: target, Major: int64(n.Major), Minor: int64(n.Minor), UID: &n.UID, GID: &n.GID}
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
