// Package sysctl says which kernel settings a pod or a container may have: those of a namespace that it has to itself.
package sysctl

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// ipc are those of kernel.* that belong to the IPC namespace (the kernel's ipc/ipc_sysctl.c).
var ipc = map[string]bool{
	"kernel/msgmax": true, "kernel/msgmnb": true, "kernel/msgmni": true, "kernel/sem": true, "kernel/shmall": true,
	"kernel/shmmax": true, "kernel/shmmni": true, "kernel/shm_rmid_forced": true, "kernel/msg_next_id": true,
	"kernel/sem_next_id": true, "kernel/shm_next_id": true, "kernel/auto_msgmni": true,
}

// Private says which namespaces are not the node's own.
type Private struct{ Net, IPC, UTS bool }

// Check refuses a setting that would change the node. A name has dots or slashes (sysctl.d(5)).
func Check(name, value string, private Private) error {
	p, err := Path(name)
	if err != nil {
		return err
	}
	if strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
		return errors.New("the value has control characters")
	}
	var namespace string
	var ok bool
	switch {
	case strings.HasPrefix(p, "net/"):
		namespace, ok = "network", private.Net
	case ipc[p], strings.HasPrefix(p, "fs/mqueue/"):
		namespace, ok = "IPC", private.IPC
	case p == "kernel/domainname":
		namespace, ok = "UTS", private.UTS
	case p == "kernel/hostname":
		return errors.New("the host name has a field of its own")
	default:
		return errors.New("it belongs to no namespace, so it would change the node")
	}
	if !ok {
		return fmt.Errorf("it belongs to the %s namespace, which is the node's", namespace)
	}
	return nil
}

// Path is the path of a setting below /proc/sys.
func Path(name string) (string, error) {
	p, err := sys.SysctlPath(name)
	if err != nil || strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "", fmt.Errorf("%q is not the name of a sysctl", name)
	}
	return p, nil
}
