package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// cri-shim-trust has the libraries for signatures and for the keys of encrypted layers: they would make the daemon half
// as large again. It is called where it is needed, answers one question, and ends. What it reads (policies, keys) is
// root's; what it parses (signatures, wrapped keys) is anybody's, and that is another reason for a process of its own.

// trustTime bounds one question. What is fetched for it has bounds of its own.
const trustTime = 2 * time.Minute

// maxTrustAnswer bounds what is read of the program.
const maxTrustAnswer = 16 << 20

// askTrust runs cri-shim-trust with a question and lets talk read its answers and write to it.
func (s *Store) askTrust(ctx context.Context, what string, question any, talk func(*json.Decoder, *json.Encoder) error) error {
	program := s.cfg.TrustProgram
	fi, err := os.Stat(program)
	if err == nil {
		err = isOurProgram(program, fi)
	}
	if err != nil {
		return fmt.Errorf("cri-shim-trust: %w", err)
	}
	tmp, err := os.MkdirTemp(s.path("ingest"), "trust-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // of ingest/, which is emptied at start in any case
	ctx, cancel := context.WithTimeoutCause(ctx, trustTime, fmt.Errorf("it took longer than %v", trustTime))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, what)
	cmd.Dir = "/"
	cmd.Env = append(verifierEnv(), "TMPDIR="+tmp)
	said := &bounded{max: maxVerdict}
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return errors.Join(err, in.Close())
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cri-shim-trust: %w", err)
	}
	enc := json.NewEncoder(in)
	err = enc.Encode(question)
	if err == nil || errors.Is(err, syscall.EPIPE) { // it may answer what it has not read
		err = talk(json.NewDecoder(io.LimitReader(out, maxTrustAnswer)), enc)
	}
	in.Close()
	_ = cmd.Process.Kill() // it has answered, or should not go on; fails if it has ended
	var denied *deniedError
	if werr := cmd.Wait(); err != nil && werr != nil && said.Len() > 0 && !errors.As(err, &denied) {
		err = errors.New(strings.TrimSpace(said.String()))
	}
	if c := context.Cause(ctx); c != nil {
		return c
	}
	if err != nil {
		return fmt.Errorf("cri-shim-trust: %w", err)
	}
	return nil
}
