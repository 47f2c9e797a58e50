package cri

import (
	"strconv"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signalName is the name of a CRI signal as records have it: SIGTERM, SIGRTMIN+3; ""
// for the runtime's default.
func signalName(s pb.Signal) string {
	if s == pb.Signal_SIGNAL_RUNTIME_DEFAULT {
		return ""
	}
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	name = strings.Replace(name, "RTMINPLUS", "RTMIN+", 1)
	return strings.Replace(name, "RTMAXMINUS", "RTMAX-", 1)
}

// signalNumbers are those of signal(7), for x86 and Arm; images may name a signal by number.
var signalNumbers = map[int]string{
	1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
	9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
	16: "SIGSTKFLT", 17: "SIGCHLD", 18: "SIGCONT", 19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU",
	23: "SIGURG", 24: "SIGXCPU", 25: "SIGXFSZ", 26: "SIGVTALRM", 27: "SIGPROF", 28: "SIGWINCH", 29: "SIGIO",
	30: "SIGPWR", 31: "SIGSYS",
}

// Numbers of the real-time signals that are left to programs.
const sigRTMin, sigRTMax = 34, 64

// signalToProto is the CRI's value for a signal's name or number; the default for one it
// has no value for.
func signalToProto(s string) pb.Signal {
	if n, err := strconv.Atoi(s); err == nil {
		s = signalNumbers[n]
		switch {
		case n >= sigRTMin && n <= sigRTMin+15:
			s = "SIGRTMIN+" + strconv.Itoa(n-sigRTMin)
		case n > sigRTMin && n <= sigRTMax:
			s = "SIGRTMAX-" + strconv.Itoa(sigRTMax-n)
		}
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	name = strings.Replace(name, "RTMIN+", "RTMINPLUS", 1)
	name = strings.Replace(name, "RTMAX-", "RTMAXMINUS", 1)
	name = strings.TrimSuffix(name, "PLUS0")
	name = strings.TrimSuffix(name, "MINUS0")
	return pb.Signal(pb.Signal_value["SIGNAL_SIG"+name])
}
