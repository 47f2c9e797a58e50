package seccomp

import (
	"iter"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Features is the seccomp part of the runtime specification's features document.
func Features() *features.Seccomp {
	_, enabled := nativeArch()
	return &features.Seccomp{
		Enabled:        &enabled,
		Actions:        Actions(),
		Operators:      Operators(),
		Archs:          Archs(),
		KnownFlags:     KnownFlags(),
		SupportedFlags: SupportedFlags(),
	}
}

// Actions lists the actions that [Compile] knows, sorted.
func Actions() []string { return names(maps.Keys(actions)) }

// Operators lists the operators that [Compile] knows, sorted.
func Operators() []string { return names(maps.Keys(operators)) }

// Archs lists the architectures that [Compile] makes filters for, sorted.
func Archs() []string {
	var out []string
	for _, info := range archInfos {
		out = append(out, string(info.name))
	}
	slices.Sort(out)
	return out
}

// KnownFlags lists the flags that [Compile] knows, sorted.
func KnownFlags() []string { return names(maps.Keys(flags)) }

// SupportedFlags lists those of [KnownFlags] that the running kernel takes.
func SupportedFlags() []string {
	out := []string{}
	for _, name := range KnownFlags() {
		f := flags[specs.LinuxSeccompFlag(name)]
		if f == FlagWaitKillableRecv {
			f |= FlagNewListener
		}
		if sys.SeccompFlagsSupported(f) {
			out = append(out, name)
		}
	}
	return out
}

func names[T ~string](seq iter.Seq[T]) []string {
	var out []string
	for s := range seq {
		out = append(out, string(s))
	}
	slices.Sort(out)
	return out
}
