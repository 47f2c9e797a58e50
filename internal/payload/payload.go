// Package payload hands out the programs that the daemon runs beside itself, cri-shim-supervisor, cri-shim-init
// and cri-shim-classes, as open files that nobody can change. They are embedded, so that one file is all there
// is to install, an upgrade cannot pull a program from under running pods, and a container that reaches
// its own /proc/self/exe cannot overwrite the runtime (CVE-2019-5736).
package payload

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// LibexecVariable names the environment variable with the folder of the two programs, for a daemon that
// was built without them and has them not beside it either.
const LibexecVariable = "CRI_SHIM_LIBEXEC"

const (
	supervisorName = "cri-shim-supervisor"
	initName       = "cri-shim-init"
	classesName    = "cri-shim-classes"
)

var (
	supervisorFile = program{name: supervisorName, embedded: &supervisor}
	initFile       = program{name: initName, embedded: &initProgram}
	classesFile    = program{name: classesName, embedded: &classesProgram}
)

// Supervisor is cri-shim-supervisor, to be executed as /proc/self/fd/N or with execveat(2). The file is
// made by the first call and shared by all: callers must not close it. The descriptor is close-on-exec.
// stateDir must exist; it is written to only where the kernel refuses to run memfds, and nothing stays
// there.
func Supervisor(stateDir string) (*os.File, error) { return supervisorFile.open(stateDir) }

// Init is cri-shim-init; see Supervisor.
func Init(stateDir string) (*os.File, error) { return initFile.open(stateDir) }

// ID names the content of a program.
func ID(f *os.File) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		return "", fmt.Errorf("program %s: %w", f.Name(), err)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// Classes is cri-shim-classes; see Supervisor.
func Classes(stateDir string) (*os.File, error) { return classesFile.open(stateDir) }

type program struct {
	name string
	// embedded points to "" in a build without payload. It is a pointer so that a command that only needs one
	// of the programs carries one.
	embedded *string

	mu   sync.Mutex
	file *os.File
}

// open makes the file once. An error is not kept: what caused it (no memory, a full disk) may pass.
func (p *program) open(stateDir string) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != nil {
		return p.file, nil
	}
	src, err := p.source()
	if err != nil {
		return nil, err
	}
	defer src.Close()
	f, err := sys.SealedExecutable(p.name, src)
	if errors.Is(err, sys.ErrMemfdNoExec) {
		f, err = readOnlyCopy(stateDir, p.name, src)
	}
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", p.name, err)
	}
	p.file = f
	// Saves megabytes of resident memory, but nothing depends on it (pages locked in memory stay).
	if p.embedded != nil {
		_ = sys.DropStringPages(*p.embedded)
	}
	return f, nil
}

// source is the embedded program or the first that is found: beside this executable, then in
// $CRI_SHIM_LIBEXEC.
func (p *program) source() (io.ReadCloser, error) {
	if p.embedded != nil && *p.embedded != "" {
		return io.NopCloser(strings.NewReader(*p.embedded)), nil
	}
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(self))
	}
	if dir := os.Getenv(LibexecVariable); dir != "" {
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		f, err := os.Open(filepath.Join(dir, p.name))
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("program %s: %w", p.name, err)
		}
	}
	return nil, fmt.Errorf("program %s is not built into this executable, nor in %s or $%s: run `make build`",
		p.name, strings.Join(dirs, ", "), LibexecVariable)
}

// readOnlyCopy serves machines with vm.memfd_noexec=2. The copy has no name left when this returns.
func readOnlyCopy(stateDir, name string, src io.Reader) (*os.File, error) {
	tmp, err := os.CreateTemp(stateDir, name+".")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, src)
	// Root of a user namespace executes it as one of the others, and must not read it (sys.SealedExecutable).
	// Still open for writing it could not be executed (ETXTBSY).
	if err := errors.Join(err, tmp.Chmod(0o711), tmp.Close()); err != nil {
		return nil, err
	}
	return sys.ReadOnlyExecutable(tmp.Name())
}
