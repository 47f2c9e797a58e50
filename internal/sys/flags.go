package sys

import "golang.org/x/sys/unix"

// Flags of clone(2) and unshare(2) that make new namespaces.
const (
	CloneNewNS     = unix.CLONE_NEWNS
	CloneNewPID    = unix.CLONE_NEWPID
	CloneNewNet    = unix.CLONE_NEWNET
	CloneNewIPC    = unix.CLONE_NEWIPC
	CloneNewUTS    = unix.CLONE_NEWUTS
	CloneNewUser   = unix.CLONE_NEWUSER
	CloneNewCgroup = unix.CLONE_NEWCGROUP
	CloneNewTime   = unix.CLONE_NEWTIME
)
