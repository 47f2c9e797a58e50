package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/cri-shim/cri-shim/internal/atomicfile"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/criu"
)

// restoreName is what the program is called as when a supervisor has it restore a container: by the command line that
// other runtimes have, so that the supervisor, which becomes the parent of what is restored, needs to know nothing of criu.
// The daemon gives it a bundle with the specification and an order.
const restoreName = "criu-restore"

// orderFile is in the bundle, beside config.json.
const orderFile = "restore.json"

// restoreOrder says what is to be restored, and into what.
type restoreOrder struct {
	Program  string        `json:"program"` // criu
	Images   string        `json:"images"`
	Root     string        `json:"root"`
	Procs    []string      `json:"procs"` // the container's control groups
	Timeout  time.Duration `json:"timeout"`
	TCPClose bool          `json:"tcp_close"`
	LSM      string        `json:"lsm,omitempty"`
}

// newRestoreCommand takes the commands that a supervisor calls another runtime by.
func newRestoreCommand() *cli.Command {
	log := func(cmd *cli.Command, err error) error {
		if err == nil || cmd.String("log") == "" {
			return err
		}
		text, _ := json.Marshal(map[string]string{"level": "error", "msg": err.Error()}) // strings can be encoded
		return errors.Join(err, os.WriteFile(cmd.String("log"), append(text, '\n'), 0o600))
	}
	nothing := func(context.Context, *cli.Command) error { return nil } // the daemon removes what there is
	return &cli.Command{
		Name: restoreName, Usage: "restore a container for a supervisor of cri-shim", Hidden: true,
		Flags:          []cli.Flag{&cli.StringFlag{Name: "log"}, &cli.StringFlag{Name: "log-format"}},
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Commands: []*cli.Command{
			{
				Name: "create",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "bundle"}, &cli.StringFlag{Name: "pid-file"}, &cli.StringFlag{Name: "console-socket"},
				},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return log(cmd, restoreProcess(ctx, cmd.String("bundle"), cmd.String("pid-file"), cmd.String("console-socket")))
				},
			},
			{Name: "start", Action: nothing}, // it runs already
			{Name: "delete", Flags: []cli.Flag{&cli.BoolFlag{Name: "force"}}, Action: nothing},
		},
	}
}

// restoreProcess restores a container with this process's standard streams. What it restores becomes an orphan when it
// ends, and with that the supervisor's.
func restoreProcess(ctx context.Context, bundle, pidFile, console string) error {
	var order restoreOrder
	var spec specs.Spec
	if err := errors.Join(readJSON(filepath.Join(bundle, orderFile), &order), readJSON(filepath.Join(bundle, "config.json"), &spec)); err != nil {
		return err
	}
	if spec.Linux == nil || spec.Process == nil {
		return fmt.Errorf("%s: not the specification of a container", bundle)
	}
	ctx, cancel := context.WithTimeout(ctx, order.Timeout)
	defer cancel()
	r := restoring{order: &order, spec: &spec}
	if err := r.inUTS(func() (err error) {
		r.hostname, err = os.Hostname()
		return err
	}); err != nil {
		return err
	}
	o := criu.RestoreOptions{
		Options: criu.Options{
			Spec: &spec, Images: order.Images, Work: bundle, Root: order.Root,
			TCPEstablished: !order.TCPClose, TCPClose: order.TCPClose, FileLocks: true, LSMProfile: order.LSM,
		},
		Stdio:      [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
		EnterGroup: r.enter, Resuming: r.verify,
	}
	var sent error
	if console != "" {
		o.Terminal = func(master *os.File) { sent = sys.SendConsole(console, master) }
	}
	var pid int
	// criu mounts control groups for its own use, which would stay on the node if it were killed.
	err := sys.InNewMounts(func() (err error) {
		pid, err = (&criu.Tool{Program: order.Program}).Restore(ctx, o)
		return err
	})
	if err = errors.Join(err, sent); err != nil {
		return errors.Join(err, r.end())
	}
	return atomicfile.Write(pidFile, []byte(strconv.Itoa(pid)), 0o600)
}

// restoring is a restore that is under way.
type restoring struct {
	order    *restoreOrder
	spec     *specs.Spec
	hostname string // the pod's
	criu     int
}

// inUTS runs f in the pod's UTS namespace, if it has one.
func (r *restoring) inUTS(f func() error) error {
	for _, ns := range r.spec.Linux.Namespaces {
		if ns.Type == specs.UTSNamespace && ns.Path != "" {
			return sys.WithNamespace(sys.NamespaceUTS, ns.Path, f)
		}
	}
	return nil
}

// enter puts criu into the container's control groups: what it restores starts there, limited and killed by them.
func (r *restoring) enter(pid int) error {
	r.criu = pid
	for _, file := range r.order.Procs {
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0); err != nil {
			return err
		}
	}
	return nil
}

// processes are those in the container's groups.
func (r *restoring) processes() ([]int, error) {
	var pids []int
	for _, file := range r.order.Procs {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for word := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// end kills what is in the groups: criu too, if it is still there.
func (r *restoring) end() error {
	pids, err := r.processes()
	return errors.Join(err, criu.EndAll(pids))
}

// verify compares what the kernel has of the restored processes with what their container allows them. They are stopped,
// and are killed where they do not fit: they have not executed anything then.
func (r *restoring) verify(pid int) error {
	err := r.compare(pid)
	if err == nil {
		// criu gives the namespace that it joins the name of the pod that the checkpoint is from.
		err = r.inUTS(func() error { return sys.SetHostname(r.hostname) })
	}
	if err == nil {
		err = r.score()
	}
	if err != nil {
		return errors.Join(err, r.end())
	}
	return nil
}

func (r *restoring) compare(first int) error {
	rights, err := criu.RightsOf(r.spec)
	if err != nil {
		return err
	}
	pids, err := r.processes()
	if err != nil {
		return err
	}
	if !slices.Contains(pids, first) {
		return &criu.MismatchError{What: fmt.Sprintf("process %d is not in the container's control group", first)}
	}
	program, err := os.Stat("/proc/" + strconv.Itoa(r.criu) + "/exe")
	if err != nil {
		return err
	}
	for _, pid := range pids {
		proc := "/proc/" + strconv.Itoa(pid)
		if exe, err := os.Stat(proc + "/exe"); err == nil && os.SameFile(exe, program) {
			continue // criu itself, which is in the group until it ends
		}
		tasks, err := os.ReadDir(proc + "/task")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			if err := criu.VerifyProcess(filepath.Join(proc, "task", task.Name()), rights); err != nil {
				return err
			}
		}
		if err := criu.VerifyNamespaces(pid, r.spec, rights); err != nil {
			return err
		}
		if err := criu.VerifyMounts(pid, r.spec, rights); err != nil {
			return err
		}
	}
	return nil
}

// score sets what the OOM killer goes by. Lowering it takes a right that a node may lack; then it stays as criu made it.
func (r *restoring) score() error {
	if r.spec.Process.OOMScoreAdj == nil {
		return nil
	}
	pids, err := r.processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(*r.spec.Process.OOMScoreAdj)), 0)
		if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
