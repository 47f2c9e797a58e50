package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// shmSize is the size of a pod's /dev/shm, as with the other runtimes.
const shmSize = 64 << 20

const (
	fileResolvConf = "resolv.conf"
	fileHostname   = "hostname"
	fileHosts      = "hosts"
	dirShm         = "shm"
)

func (m *Manager) podFile(p *Pod, name string) string {
	return filepath.Join(m.podStateDir(p.ID), name)
}

// makePodFiles makes the pod's folder with the files and the /dev/shm that its containers share.
func (m *Manager) makePodFiles(p *pod) error {
	dir := m.podStateDir(p.ID)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.MkdirAll(filepath.Join(dir, "ns"), 0o711)); err != nil {
		return err
	}
	// The folder's name is in everybody's /proc/self/mountinfo, and what is in it is open: /dev/shm to anyone. The root of a
	// user namespace has to get through all the same, as other runtimes mount with its rights.
	if _, gid, ok := podRoot(&p.Pod); ok {
		if err := errors.Join(os.Chown(dir, -1, int(gid)), os.Chmod(dir, 0o710)); err != nil {
			return err
		}
	}
	resolv, err := resolvConf(p.Config.DNS)
	if err != nil {
		return err
	}
	hostname := p.Config.Hostname
	if !m.ownsNetwork(&p.Pod) {
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{fileResolvConf: resolv, fileHostname: []byte(hostname + "\n")} {
		if err := m.writePodFile(&p.Pod, name, content); err != nil {
			return err
		}
	}
	if !m.ownsIPC(&p.Pod) {
		return nil
	}
	shm := filepath.Join(dir, dirShm)
	if err := os.Mkdir(shm, 0o755); err != nil {
		return err
	}
	if err := sys.MountTmpfs(shm, shmSize, 0o1777); err != nil {
		return err
	}
	return chownPodRoot(&p.Pod, shm)
}

// writePodFile writes a file that belongs to the root of the pod's containers.
func (m *Manager) writePodFile(p *Pod, name string, content []byte) error {
	path := m.podFile(p, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	return chownPodRoot(p, path)
}

// resolvConf is the pod's resolv.conf; without DNS configuration it is the node's.
func resolvConf(dns *workload.DNS) ([]byte, error) {
	if dns == nil || len(dns.Servers)+len(dns.Searches)+len(dns.Options) == 0 {
		data, err := os.ReadFile("/etc/resolv.conf")
		if os.IsNotExist(err) {
			return nil, nil
		}
		return data, err
	}
	var b bytes.Buffer
	for _, part := range []struct {
		field, key string
		values     []string
		each       bool
	}{
		{"dns_config.searches", "search", dns.Searches, false},
		{"dns_config.servers", "nameserver", dns.Servers, true},
		{"dns_config.options", "options", dns.Options, false},
	} {
		for i, v := range part.values {
			if strings.ContainsAny(v, "\n\r\x00") {
				return nil, invalid(fmt.Sprintf("%s[%d]", part.field, i), "%q has a line break", v)
			}
			if part.each {
				fmt.Fprintf(&b, "%s %s\n", part.key, v)
			}
		}
		if !part.each && len(part.values) > 0 {
			fmt.Fprintf(&b, "%s %s\n", part.key, strings.Join(part.values, " "))
		}
	}
	return b.Bytes(), nil
}

// writeHosts writes /etc/hosts for containers into which the client mounts none of its own.
func (m *Manager) writeHosts(p *pod) error {
	facts := m.snapshot(p)
	var content []byte
	if m.ownsNetwork(facts) {
		content = hosts(facts.Config.Hostname, facts.IPs)
	} else {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		content = data
	}
	return m.writePodFile(facts, fileHosts, content)
}

func hosts(hostname string, ips []netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	b.WriteString("fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if hostname != "" {
		for _, ip := range ips {
			fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
		}
	}
	return b.Bytes()
}

// removePodFiles undoes makePodFiles and makeNamespaces; nil when gone.
func (m *Manager) removePodFiles(p *Pod) error {
	for _, ns := range podNamespaces {
		if path := m.namespacePath(p, ns.kind); path != "" {
			if err := sys.UnpinNamespace(path); err != nil {
				return err
			}
		}
	}
	if err := sys.UnmountDetach(m.podFile(p, dirShm)); err != nil {
		return err
	}
	return os.RemoveAll(m.podStateDir(p.ID))
}
