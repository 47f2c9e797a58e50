// Package payload hands out the programs that the daemon runs beside itself, cri-shim-supervisor, cri-shim-init
// and cri-shim-classes, as open files that nobody can change. They are embedded, so that one file is all there
// is to install, an upgrade cannot pull a program from under running pods, and a container that reaches
// its own /proc/self/exe cannot overwrite the runtime (CVE-2019-5736).
package payload

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

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

// KeptInit is Init for a command that starts one container and ends: it keeps the program in a file of dir, which is for
// root alone, since copying it into a memfd takes as long as starting it. What is opened is a read-only
// mount of the file that is attached nowhere, which a container cannot write through either (CVE-2019-5736). Where that
// cannot be had it is Init.
func KeptInit(dir string) (*os.File, error) {
	if f, err := initFile.kept(dir); err == nil {
		return f, nil
	}
	return Init(dir)
}

func (p *program) kept(dir string) (*os.File, error) {
	if p.embedded == nil || len(*p.embedded) == 0 {
		return nil, errors.ErrUnsupported
	}
	id := buildID(*p.embedded)
	if id == "" {
		return nil, errors.ErrUnsupported
	}
	path := filepath.Join(dir, "."+p.name+"-"+id)
	f, err := sys.ReadOnlyExecutable(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = p.keep(dir, path); err == nil {
			f, err = sys.ReadOnlyExecutable(path)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := p.check(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// keep writes the program to path, and removes those of other versions.
func (p *program) keep(dir, path string) error {
	old, _ := filepath.Glob(filepath.Join(dir, "."+p.name+"-*"))
	for _, o := range old {
		os.Remove(o)
	}
	tmp, err := os.CreateTemp(dir, "."+p.name+".")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(*p.embedded)
	// Synced, or it could be half there after a crash, where dir is on a disk.
	if err := errors.Join(err, tmp.Chmod(0o711), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// check looks whether the file is as keep has made it.
func (p *program) check(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	owner, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode() != 0o711 || fi.Size() != int64(len(*p.embedded)) || int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("program %s: the kept file is not what it should be", p.name)
	}
	return nil
}

// buildID is what tells one build of a Go program from any other: the end of the ID that the linker has left in a note, which
// is a hash of the content; "" if there is none.
func buildID(program string) string {
	const note = "\x04\x00\x00\x00Go\x00\x00" // type ELF_NOTE_GOBUILDID, name
	head := program[:min(len(program), 8<<10)]
	i := strings.Index(head, note)
	if i < 8 {
		return ""
	}
	size := int(binary.LittleEndian.Uint32([]byte(head[i-4:])[:4]))
	id := head[i+len(note):]
	if size <= 0 || size > len(id) {
		return ""
	}
	id = id[:size]
	id = id[strings.LastIndexByte(id, '/')+1:]
	if len(id) < 16 || strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_')
	}) {
		return ""
	}
	return id
}

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
