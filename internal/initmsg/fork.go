package initmsg

import (
	"encoding/binary"
	"errors"
)

// An init in ModeServer forks another one for each ForkRequest that it gets over FDSync, a SOCK_SEQPACKET
// socket, and answers with a ForkReply. The files of a request arrive as descriptors 0, 1, 2, … of the new init,
// since the server has none below ServerFloor; a cgroup and a PID namespace follow them.
const (
	// ServerFloor is above all descriptors of a request. With it, the table of descriptors that each fork copies
	// stays as small as the kernel has them.
	ServerFloor = 60
	forkSize    = 16
	// ForkReplySize is the length of a reply, in bytes.
	ForkReplySize = 8
)

// ForkRequest asks for another init.
type ForkRequest struct {
	CloneFlags uint64 // CLONE_NEW…
	Files      int    // that the init gets: message, sync pipe and all
	// Cgroup says that a cgroup directory follows the files, to be cloned into (CLONE_INTO_CGROUP).
	Cgroup bool
	// PIDNamespace says that a namespace or a pidfd comes last, whose PID namespace the init is to be born into.
	PIDNamespace bool
	// Standby is for a fork that is made ahead, of a request that has yet to come. The one file is its end of a SOCK_SEQPACKET
	// socket, over which it gets a message like those to be expected, as the one file of a second such request. It makes ready for
	// it, answers with a ForkReply, and waits for the request itself, which has the same CloneFlags.
	Standby bool
}

// Descriptors is how many go with the request.
func (r *ForkRequest) Descriptors() int {
	n := r.Files
	if r.Cgroup {
		n++
	}
	if r.PIDNamespace {
		n++
	}
	return n
}

// Append codes the request.
func (r *ForkRequest) Append(b []byte) []byte {
	var bits byte
	if r.Cgroup {
		bits |= 1
	}
	if r.PIDNamespace {
		bits |= 2
	}
	if r.Standby {
		bits |= 4
	}
	b = append(b, Version, byte(r.Files), bits, 0, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint64(b, r.CloneFlags)
}

var errFork = errors.New("not a request for a fork")

// DecodeForkRequest reads what Append wrote.
func DecodeForkRequest(b []byte) (r ForkRequest, err error) {
	if len(b) != forkSize || b[0] != Version || b[2] > 7 || b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
		return r, errFork
	}
	r = ForkRequest{
		CloneFlags: binary.LittleEndian.Uint64(b[8:]), Files: int(b[1]), Cgroup: b[2]&1 != 0, PIDNamespace: b[2]&2 != 0, Standby: b[2]&4 != 0,
	}
	if r.Descriptors() > ServerFloor || r.Standby && r.Descriptors() != 1 {
		return r, errFork
	}
	return r, nil
}

// ForkReply is the new init's process ID in the server's PID namespace, or why there is none.
type ForkReply struct {
	PID   int32
	Errno uint32
}

// Append codes the reply.
func (r *ForkReply) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(r.PID))
	return binary.LittleEndian.AppendUint32(b, r.Errno)
}

// DecodeForkReply reads what Append wrote.
func DecodeForkReply(b []byte) (r ForkReply, err error) {
	if len(b) != ForkReplySize {
		return r, errors.New("not a reply about a fork")
	}
	return ForkReply{PID: int32(binary.LittleEndian.Uint32(b)), Errno: binary.LittleEndian.Uint32(b[4:])}, nil
}
