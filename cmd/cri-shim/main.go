// Command cri-shim is a Kubernetes node runtime: the daemon that the kubelet and crictl talk
// to, and the administrator's commands.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc/status"
)

func main() {
	cmd := commandCalled(filepath.Base(os.Args[0]))
	if err := cmd.Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, cmd.Name+": "+message(err))
		os.Exit(1)
	}
}

// commandCalled is what the program is under a name that links to it.
func commandCalled(name string) *cli.Command {
	switch name {
	case "ctr":
		return newCtrCommand()
	case "containerd":
		return newContainerdCommand()
	case restoreName:
		return newRestoreCommand()
	}
	return newCommand()
}

// message is what a person reads of an error: of a call's status, the text alone.
func message(err error) string {
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return status.Convert(err).Message()
	}
	return err.Error()
}

// newCommand is the tree of commands.
func newCommand() *cli.Command {
	root := &cli.Command{
		Name:  "cri-shim",
		Usage: "run Kubernetes pods on this node",
		Description: "cri-shim serve is what the kubelet's containerRuntimeEndpoint and crictl connect to.\n" +
			"The other commands help the administrator; most talk to the running daemon.",
		Version:               versionText(),
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden = false
			c.Usage = "print a completion script for bash, zsh, fish or pwsh"
			strict(c)
		},
		// Errors are returned to main, which prints them once.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Commands: []*cli.Command{
			serveCommand(),
			configCommand(),
			imageCommand(),
			gpuCommand(),
			timelineCommand(),
			metricsCommand(),
			versionCommand(),
		},
	}
	strict(root)
	return root
}

// noArguments refuses what a command would pass over: who names an image expects it to count.
func noArguments(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if cmd.Args().Present() {
			return fmt.Errorf("%s takes no argument: %s", cmd.FullName(), cmd.Args().First())
		}
		return action(ctx, cmd)
	}
}

// strict makes a mistake in a command line one line that says what is wrong, instead of a page of help.
func strict(c *cli.Command) {
	c.OnUsageError = func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
		return fmt.Errorf("%w (see %s --help)", err, cmd.FullName())
	}
	if len(c.Commands) > 0 {
		c.Action = helpOrUnknown
	}
	for _, sub := range c.Commands {
		strict(sub)
	}
}

// helpOrUnknown is for a command that only has commands below it.
func helpOrUnknown(_ context.Context, cmd *cli.Command) error {
	name := cmd.Args().First()
	switch near := cli.SuggestCommand(cmd.VisibleCommands(), name); {
	case name == "" && cmd == cmd.Root():
		return cli.ShowRootCommandHelp(cmd)
	case name == "":
		return cli.ShowSubcommandHelp(cmd)
	case strings.HasPrefix(near, name[:1]):
		return fmt.Errorf("%s has no command %q; did you mean %s?", cmd.FullName(), name, near)
	default:
		return fmt.Errorf("%s has no command %q (see %s --help)", cmd.FullName(), name, cmd.FullName())
	}
}
