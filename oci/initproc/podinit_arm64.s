#include "textflag.h"

// podLoop is the whole program of a pod's PID 1, see podinit.go: it reaps and
// waits, and ends on SIGTERM and SIGINT, all of which are blocked. It is copied out
// of this program, so it must not refer to any address outside of itself.
TEXT ·podLoop(SB), NOSPLIT|NOFRAME, $0
	MOVD	RSP, R9
	SUB	$16, R9, R9
	MOVD	R9, RSP
	MOVD	$0x4002, R10	// 1<<(SIGINT-1) | 1<<(SIGTERM-1)
	MOVD	$0x10000, R11	// 1<<(SIGCHLD-1)
	ORR	R11, R10, R10
	MOVD	R10, (R9)
reap:
	MOVD	$-1, R0		// wait4(-1, NULL, WNOHANG, NULL)
	MOVD	$0, R1
	MOVD	$1, R2
	MOVD	$0, R3
	MOVD	$260, R8
	SVC
	CMP	$0, R0
	BGT	reap
	MOVD	R9, R0		// rt_sigtimedwait(&set, NULL, NULL, 8)
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$8, R3
	MOVD	$137, R8
	SVC
	CMP	$15, R0
	BEQ	done
	CMP	$2, R0
	BNE	reap
done:
	MOVD	$0, R0		// exit_group(0)
	MOVD	$94, R8
	SVC
	BRK

TEXT ·podLoopEnd(SB), NOSPLIT|NOFRAME, $0
	BRK

// func podLoopBounds() (start, end uintptr)
TEXT ·podLoopBounds(SB), NOSPLIT, $0-16
	MOVD	$·podLoop(SB), R0
	MOVD	R0, start+0(FP)
	MOVD	$·podLoopEnd(SB), R0
	MOVD	R0, end+8(FP)
	RET
