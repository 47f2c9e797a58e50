// Package version says which build of cri-shim this is.
package version

import "runtime/debug"

// Set by the Makefile with -ldflags -X.
var (
	version string
	commit  string
)

// Version is the release this program was built from as `git describe` names it, the module version
// where it was built by `go install`, or "devel".
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

// Commit is the Git commit this program was built from; "" where neither the Makefile nor the Go tool
// recorded one.
func Commit() string {
	if commit != "" {
		return commit
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value
		}
	}
	return ""
}
