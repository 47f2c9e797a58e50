package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/oci/container"
)

func (a *app) execCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "exec", Usage: "execute another process in a container",
		ArgsUsage: idArgument + " <command> [arguments], or -p process.json " + idArgument,
		Action:    a.exec,
		Flags: append(processFlags(),
			&cli.StringFlag{Name: "cwd", Usage: "the working directory"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "a variable of the environment, NAME=value"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "a terminal"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "UID[:GID]"},
			&cli.Int64SliceFlag{Name: "additional-gids", Aliases: []string{"g"}, Usage: "more groups"},
			&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "a file with the process as in config.json"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "do not wait for the process's end"},
			&cli.StringFlag{Name: "process-label", Usage: "the SELinux label"},
			&cli.StringFlag{Name: "apparmor", Usage: "the AppArmor profile"},
			&cli.BoolFlag{Name: "no-new-privs", Usage: "no new privileges"},
			&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, Usage: "one more capability"},
			&cli.StringSliceFlag{Name: "cgroup", Usage: "the control group below the container's"},
			&cli.BoolFlag{Name: "ignore-paused", Usage: "also in a paused container"},
		),
	}}
}

// failedExec is runc's exit status where the command was not executed.
const failedExec = 255

func (a *app) exec(ctx context.Context, cmd *cli.Command) error {
	var code int
	err := a.about(1, -1, func(ctx context.Context, cmd *cli.Command, c *container.Container) (err error) {
		code, err = a.execute(ctx, cmd, c)
		return err
	})(ctx, cmd)
	if err != nil {
		a.log.fatal(err)
		code = failedExec
	}
	if code != 0 {
		return exitStatus(code)
	}
	return nil
}

func (a *app) execute(ctx context.Context, cmd *cli.Command, c *container.Container) (int, error) {
	o, err := execOptions(cmd, c)
	if err != nil {
		return 0, err
	}
	detach := cmd.Bool("detach")
	fg := new(foreground)
	defer fg.close()
	if !detach {
		fg.listen()
	}
	if !detach && o.ConsoleSocket == "" {
		o.Terminal = fg.terminal
	}
	child, err := c.Exec(ctx, o)
	if err != nil || detach {
		return 0, err
	}
	return fg.wait(child), nil
}

func execOptions(cmd *cli.Command, c *container.Container) (container.ExecOptions, error) {
	o := container.ExecOptions{
		IgnorePaused: cmd.Bool("ignore-paused"), ConsoleSocket: cmd.String("console-socket"), PIDFile: cmd.String("pid-file"),
		Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
	}
	var err error
	if o.Cgroup, err = subgroup(cmd.StringSlice("cgroup")); err != nil {
		return o, err
	}
	if o.PIDFile != "" {
		if o.PIDFile, err = filepath.Abs(o.PIDFile); err != nil {
			return o, err
		}
	}
	var env []string
	if o.ExtraFiles, env, err = inherited(cmd); err != nil {
		return o, err
	}
	if o.Process, err = execProcess(cmd, c); err != nil {
		return o, err
	}
	o.Process.Env = append(o.Process.Env, env...)
	return o, nil
}

// subgroup is the value of --cgroup; runc also takes one for each controller of cgroup v1.
func subgroup(values []string) (string, error) {
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1 || strings.Contains(values[0], ":"):
		return "", errors.New("--cgroup: one group for all controllers is supported, and not one for each")
	}
	return values[0], nil
}

func execProcess(cmd *cli.Command, c *container.Container) (*specs.Process, error) {
	if path := cmd.String("process"); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		p := new(specs.Process)
		if err := json.Unmarshal(data, p); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return p, nil
	}
	args := cmd.Args().Slice()[1:]
	if len(args) == 0 {
		return nil, errors.New("process args cannot be empty")
	}
	spec, err := c.Spec()
	if err != nil {
		return nil, err
	}
	if spec.Process == nil {
		return nil, errors.New("the container's configuration has no process")
	}
	return flagged(cmd, container.ExecProcess(spec, args))
}

// flagged changes the container's own process as the flags say.
func flagged(cmd *cli.Command, p *specs.Process) (*specs.Process, error) {
	if cwd := cmd.String("cwd"); cwd != "" {
		p.Cwd = cwd
	}
	if l := cmd.String("process-label"); l != "" {
		p.SelinuxLabel = l
	}
	if l := cmd.String("apparmor"); l != "" {
		p.ApparmorProfile = l
	}
	if caps := cmd.StringSlice("cap"); len(caps) > 0 {
		set := specs.LinuxCapabilities{}
		if p.Capabilities != nil {
			set = *p.Capabilities
		}
		for _, to := range []*[]string{&set.Bounding, &set.Effective, &set.Permitted} {
			*to = append((*to)[:len(*to):len(*to)], caps...)
		}
		p.Capabilities = &set
	}
	p.Terminal = cmd.Bool("tty")
	p.Env = append(p.Env, cmd.StringSlice("env")...)
	if cmd.IsSet("no-new-privs") {
		p.NoNewPrivileges = cmd.Bool("no-new-privs")
	}
	if u := cmd.String("user"); u != "" {
		uid, gid, hasGID := strings.Cut(u, ":")
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--user: %q is not UID[:GID]", u)
		}
		p.User.UID = uint32(n)
		if hasGID {
			if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
				return nil, fmt.Errorf("--user: %q is not UID[:GID]", u)
			}
			p.User.GID = uint32(n)
		}
	}
	for _, g := range cmd.Int64Slice("additional-gids") {
		if g < 0 || g > 1<<32-1 {
			return nil, fmt.Errorf("--additional-gids: %d is not a group", g)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(g))
	}
	return p, nil
}
