package api

import (
	"fmt"
	"time"
)

// Op is what a request asks for.
type Op string

// Operations of a supervisor.
const (
	OpHello     Op = "hello"      // reply: Hello
	OpLaunch    Op = "launch"     // reply: PID, and a pidfd beside the frame
	OpSignal    Op = "signal"     // nil error when the process has ended already; SIGKILL also calls a launch off
	OpResize    Op = "resize"     // terminal size
	OpAttach    Op = "attach"     // descriptors: stdin, stdout, stderr, session as Roles say
	OpReopenLog Op = "reopen-log" // descriptor: the new log file
	OpList      Op = "list"       // reply: Processes, from After on in order of ID
	OpPidfd     Op = "pidfd"      // reply: a pidfd beside the frame
	OpForget    Op = "forget"     // drop what is remembered of an ended process
	OpQuit      Op = "quit"       // end the supervisor; refused while it has processes
)

// Role says what a descriptor beside a frame is for.
type Role string

// Roles of descriptors. RoleFile may stand several times: those become the init's
// files in order.
const (
	RoleMessage Role = "message" // the init's message
	RoleFile    Role = "file"
	RoleCgroup  Role = "cgroup" // cgroup v2 directory for CLONE_INTO_CGROUP
	RoleLog     Role = "log"
	RoleStdin   Role = "stdin"
	RoleStdout  Role = "stdout"
	RoleStderr  Role = "stderr"
	RoleConsole Role = "console" // unix socket that receives an exec's terminal
	// RoleSession is the reading end of a pipe that ends when an attached client has gone.
	RoleSession Role = "session"
	// RoleInit is the program that reads RoleMessage, where that is not the supervisor's own (Hello.InitID).
	RoleInit Role = "init"
	// RolePIDNamespace is a pidfd of the process that Launch.PIDNamespaceOf names, for a supervisor that
	// did not start it: its own has died.
	RolePIDNamespace Role = "pid-namespace"
	// RoleUserNamespace and RoleTimeNamespace are namespaces to be entered before the clone.
	RoleUserNamespace Role = "user-namespace"
	RoleTimeNamespace Role = "time-namespace"
)

// Request is a frame from the daemon. Seq is not 0 and names the reply.
type Request struct {
	Seq    uint64  `json:"seq"`
	Op     Op      `json:"op"`
	ID     string  `json:"id,omitempty"` // the process (container or exec ID) that it is about
	Roles  []Role  `json:"roles,omitempty"`
	Launch *Launch `json:"launch,omitempty"`
	Signal int     `json:"signal,omitempty"`
	// Family has a SIGKILL reach what the process has started, too (sys.KillFamily).
	Family bool   `json:"family,omitempty"`
	Rows   uint16 `json:"rows,omitempty"`
	Cols   uint16 `json:"cols,omitempty"`
	After  string `json:"after,omitempty"`
}

// Launch starts a process through the init.
type Launch struct {
	// Pod is the pod's ID, for OpList.
	Pod string `json:"pod,omitempty"`
	// CloneFlags are CLONE_NEW… flags.
	CloneFlags uint64 `json:"clone_flags,omitempty"`
	// PIDNamespaceOf is the ID of a process whose PID namespace is joined: one of this supervisor, or
	// the one that RolePIDNamespace is a pidfd of.
	PIDNamespaceOf string `json:"pid_namespace_of,omitempty"`
	// LatePID leaves joining that PID namespace to the init, whose last files are the namespace and a page of memory.
	LatePID bool `json:"late_pid,omitempty"`
	// Logged processes (containers) have their output written to the log in the CRI's
	// format. Others (execs) get the descriptors with the roles stdin, stdout and stderr.
	Logged    bool `json:"logged,omitempty"`
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdin_once,omitempty"`
	// Terminal: the init sends the master of its terminal over a socket that is
	// the last of its files: for Logged processes the supervisor makes and reads it.
	Terminal bool `json:"terminal,omitempty"`
	// MaxLine is the length in bytes at which a log line is split; 0 is 16384.
	MaxLine int `json:"max_line,omitempty"`
	// ExitFile is written before the exit is told; empty for none.
	ExitFile string `json:"exit_file,omitempty"`
	// OOMFile holds the cgroup's oom_kill counter.
	OOMFile string `json:"oom_file,omitempty"`
	// OOMParent is the same of the cgroup above, for a cgroup that another (systemd) may remove at any time.
	OOMParent string `json:"oom_parent,omitempty"`
	// KillGroup are cgroup directories whose processes are killed when the process has ended:
	// for a container without a PID namespace of its own. On cgroup v2 the one directory.
	KillGroup []string `json:"kill_group,omitempty"`
	// Affinity are the CPUs to start on, as words of a mask.
	Affinity []uint64 `json:"affinity,omitempty"`
	// TimeOffsets are lines for the timens_offsets of a time namespace that CloneFlags make.
	TimeOffsets string `json:"time_offsets,omitempty"`
	// Foreign has another runtime make the process; there is no RoleMessage then, so that a supervisor that does not know
	// the field refuses.
	Foreign *Foreign `json:"foreign,omitempty"`
	// Host is done with the node's rights before RoleUserNamespace is entered; nil without one.
	Host *HostSetup `json:"host,omitempty"`
}

// Foreign is another OCI runtime, driven over the command line that runc has. Paths are absolute.
type Foreign struct {
	Program string   `json:"program"`
	Options []string `json:"options,omitempty"` // before the command
	ID      string   `json:"id"`                // the container's, for the runtime
	// Bundle is the container's folder with config.json. Dir is one for this launch's own files, such as the runtime's log.
	Bundle string `json:"bundle"`
	Dir    string `json:"dir"`
	// Process is the file with the process of an exec; without it the container is made.
	Process string `json:"process,omitempty"`
	// PIDLink is made a link to the PID namespace that Launch.PIDNamespaceOf says, for as long as the container is made.
	PIDLink string `json:"pid_link,omitempty"`
	// Timeout bounds each call of the program, in nanoseconds.
	Timeout time.Duration `json:"timeout"`
}

// HostSetup is what a process in a user namespace cannot do for itself.
type HostSetup struct {
	CgroupTasks []string `json:"cgroup_tasks,omitempty"` // cgroup v1 files to be moved by
	Dir         string   `json:"dir,omitempty"`          // working directory
	StdioUID    *uint32  `json:"stdio_uid,omitempty"`    // owner of its pipes, as on the node
	OOMScoreAdj *int32   `json:"oom_score_adj,omitempty"`
	Rlimits     []Rlimit `json:"rlimits,omitempty"` // raised where they are below
}

// Rlimit is a hard limit by its RLIMIT_… number.
type Rlimit struct {
	Resource uint32 `json:"resource"`
	Hard     uint64 `json:"hard"`
}

// Reply is a frame from the supervisor: an answer, or an event with Seq 0. Seq 0 with Err is the
// last word before the connection is closed: the supervisor could not read a frame.
type Reply struct {
	Seq       uint64    `json:"seq,omitempty"`
	Err       *Error    `json:"err,omitempty"`
	Hello     *Hello    `json:"hello,omitempty"`
	PID       int       `json:"pid,omitempty"`
	Processes []Process `json:"processes,omitempty"`
	More      bool      `json:"more,omitempty"`
	Warnings  []string  `json:"warnings,omitempty"` // of a launch that succeeded
	Exit      *Exit     `json:"exit,omitempty"`     // event, and in ExitFile
}

// Hello says who a supervisor is.
type Hello struct {
	PID     int    `json:"pid"`
	Release string `json:"release"`
	// InitID names the build of the supervisor's init.
	InitID string `json:"init_id,omitempty"`
}

// Process is one that a supervisor started. Exit is set once it has ended.
type Process struct {
	ID   string `json:"id"`
	Pod  string `json:"pod,omitempty"`
	PID  int    `json:"pid"`
	Exit *Exit  `json:"exit,omitempty"`
}

// Exit is how a process ended; it is also the content of an exit file.
type Exit struct {
	ID string `json:"id"`
	// Code is the exit status, or 128 and the signal's number.
	Code   int  `json:"code"`
	Signal int  `json:"signal,omitempty"`
	OOM    bool `json:"oom,omitempty"` // the kernel's OOM killer struck in its cgroup
	// Failed says why the workload was never executed: the launch's answer says it too, but
	// the daemon that asked may be gone.
	Failed string    `json:"failed,omitempty"`
	At     time.Time `json:"at"`
}

// Error is a failed request. Stage is where: "frame", "launch", "init", …
type Error struct {
	Stage string `json:"stage"`
	Text  string `json:"text"`
	Errno int    `json:"errno,omitempty"`
	// NotFound: there is no process of that ID.
	NotFound bool `json:"not_found,omitempty"`
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Stage, e.Text) }
