package main

import (
	"context"
	"fmt"
	"regexp"
	"runtime"

	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/internal/version"
)

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print which build this is",
		Action: noArguments(func(_ context.Context, cmd *cli.Command) error {
			fmt.Fprintf(cmd.Root().Writer, "cri-shim %s\n", versionText())
			return nil
		}),
	}
}

func versionText() string {
	text := version.Version()
	if c := version.Commit(); c != "" {
		text += " (" + c + ")"
	}
	return text + " " + runtime.Version()
}

var (
	semanticVersion = regexp.MustCompile(`^v?([0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?)$`)
	notSemantic     = regexp.MustCompile(`[^0-9A-Za-z.-]+`)
)

// semantic makes a version what the CRI demands, "semver-compatible": a build from no
// release is a pre-release of 0.0.0.
func semantic(v string) string {
	if m := semanticVersion.FindStringSubmatch(v); m != nil {
		return m[1]
	}
	return "0.0.0-" + notSemantic.ReplaceAllString(v, "-")
}
