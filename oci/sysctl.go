package oci

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// ipcSysctls of kernel.* belong to the IPC namespace (the kernel's ipc/ipc_sysctl.c).
var ipcSysctls = map[string]bool{
	"kernel/msgmax": true, "kernel/msgmnb": true, "kernel/msgmni": true, "kernel/sem": true, "kernel/shmall": true,
	"kernel/shmmax": true, "kernel/shmmni": true, "kernel/shm_rmid_forced": true, "kernel/msg_next_id": true,
	"kernel/sem_next_id": true, "kernel/shm_next_id": true, "kernel/auto_msgmni": true,
}

// privateNamespaces says which namespaces are not the node's own.
type privateNamespaces struct{ net, ipc, uts bool }

// CheckSysctls says whether a pod may have its sysctls: each must belong to a namespace that the pod does not share with
// the node, or else the pod would change the node.
func CheckSysctls(pod *workload.Pod) error {
	ns := pod.Security.Namespaces
	private := privateNamespaces{
		net: ns.Network != workload.ModeNode,
		ipc: ns.IPC != workload.ModeNode,
		uts: ns.Network != workload.ModeNode, // a pod with the host's network has its host name too
	}
	for _, name := range slices.Sorted(maps.Keys(pod.Sysctls)) {
		if err := checkSysctl(name, pod.Sysctls[name], private); err != nil {
			return &FieldError{Field: "sysctls[" + name + "]", Err: err}
		}
	}
	return nil
}

func checkSysctl(name, value string, private privateNamespaces) error {
	p, err := sysctlPath(name)
	if err != nil {
		return err
	}
	if strings.IndexByte(value, 0) >= 0 {
		return fmt.Errorf("NUL byte in the value")
	}
	var namespace string
	var ok bool
	switch {
	case strings.HasPrefix(p, "net/"):
		namespace, ok = "network", private.net
	case ipcSysctls[p], strings.HasPrefix(p, "fs/mqueue/"):
		namespace, ok = "IPC", private.ipc
	case p == "kernel/domainname":
		namespace, ok = "UTS", private.uts
	case p == "kernel/hostname":
		return fmt.Errorf("the host name has a field of its own")
	default:
		return fmt.Errorf("it belongs to no namespace, so it would change the node")
	}
	if !ok {
		return fmt.Errorf("it belongs to the %s namespace, which is the node's", namespace)
	}
	return nil
}

// sysctlPath is the path below /proc/sys. The first of '.' and '/' in a name separates its parts and the
// other stands for itself (sysctl.d(5)).
func sysctlPath(name string) (string, error) {
	p, err := sys.SysctlPath(name)
	if err != nil {
		return "", fmt.Errorf("%q is not the name of a sysctl", name)
	}
	return p, nil
}
