#include "textflag.h"

// podLoop is the whole program of a pod's PID 1, see podinit.go: it reaps and
// waits, and ends on SIGTERM and SIGINT, all of which are blocked. It is copied out
// of this program, so it must not refer to any address outside of itself.
TEXT ·podLoop(SB), NOSPLIT|NOFRAME, $0
	MOVL	$0x14002, R12	// 1<<(SIGINT-1) | 1<<(SIGTERM-1) | 1<<(SIGCHLD-1)
	MOVQ	R12, -16(SP)
reap:
	MOVL	$61, AX		// wait4(-1, NULL, WNOHANG, NULL)
	MOVQ	$-1, DI
	XORL	SI, SI
	MOVL	$1, DX
	XORL	R10, R10
	SYSCALL
	TESTQ	AX, AX
	JGT	reap
	MOVL	$128, AX	// rt_sigtimedwait(&set, NULL, NULL, 8)
	LEAQ	-16(SP), DI
	XORL	SI, SI
	XORL	DX, DX
	MOVL	$8, R10
	SYSCALL
	CMPQ	AX, $15
	JEQ	done
	CMPQ	AX, $2
	JNE	reap
done:
	MOVL	$231, AX	// exit_group(0)
	XORL	DI, DI
	SYSCALL
	INT	$3

TEXT ·podLoopEnd(SB), NOSPLIT|NOFRAME, $0
	INT	$3

// func podLoopBounds() (start, end uintptr)
TEXT ·podLoopBounds(SB), NOSPLIT, $0-16
	LEAQ	·podLoop(SB), AX
	MOVQ	AX, start+0(FP)
	LEAQ	·podLoopEnd(SB), AX
	MOVQ	AX, end+8(FP)
	RET
