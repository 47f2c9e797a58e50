package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Credential helpers are programs that a docker configuration names: docker-credential-NAME, called with "get" and the
// registry's address on standard input. Clouds' registries have them, as their passwords last for hours.

const (
	helperTime      = 20 * time.Second
	maxHelperAnswer = 64 << 10 // tokens of some registries have kilobytes
	hubServer       = "https://index.docker.io/v1/"
)

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// helperFor is the helper that the file has for a host, and what the host is called there.
func (f *authFile) helperFor(host string) (name, server string) {
	for key, n := range f.CredHelpers {
		if h, path := splitAuthKey(key); n != "" && path == "" && h == hubAlias(host) {
			return n, key
		}
	}
	if f.CredsStore == "" {
		return "", ""
	}
	if hubAlias(host) == "docker.io" {
		return f.CredsStore, hubServer
	}
	return f.CredsStore, host
}

// errNoCredentials is a helper's that has none for the host.
var errNoCredentials = errors.New("no credentials")

// askHelper runs a helper. What it prints is never in an error, but for what it says when it fails.
func askHelper(ctx context.Context, name, server string) (*Auth, error) {
	if !helperName.MatchString(name) {
		return nil, fmt.Errorf("credential helper %.100q: not a name: %w", name, ErrInvalid)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, helperTime, fmt.Errorf("it took longer than %v", helperTime))
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, "get")
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(server)
	out := &bounded{max: maxHelperAnswer}
	cmd.Stdout = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if c := context.Cause(ctx); c != nil {
		err = c
	}
	var exit *exec.ExitError
	switch said := strings.TrimSpace(out.String()); {
	case errors.As(err, &exit) && strings.HasPrefix(said, "credentials not found"):
		return nil, errNoCredentials
	case errors.As(err, &exit):
		// By the protocol what a helper that fails prints is its message.
		return nil, fmt.Errorf("credential helper %s for %s: %.200s (%w)", name, server, said, err)
	case err != nil:
		return nil, fmt.Errorf("credential helper %s: %w", name, err)
	}
	return parseHelper(out.Bytes(), name)
}

func parseHelper(b []byte, name string) (*Auth, error) {
	var got struct{ Username, Secret string }
	if err := json.Unmarshal(bytes.TrimSpace(b), &got); err != nil {
		return nil, fmt.Errorf("credential helper %s: its answer is not JSON: %w", name, ErrInvalid)
	}
	switch {
	case got.Username == "" || got.Secret == "":
		return nil, errNoCredentials
	case got.Username == "<token>": // the helpers' mark for an identity token
		return &Auth{IdentityToken: got.Secret}, nil
	}
	return &Auth{Username: got.Username, Password: got.Secret}, nil
}

// fromHelper is the credential that a file's helper has.
func (f *authFile) fromHelper(ctx context.Context, file, host string) (credential, error) {
	name, server := f.helperFor(host)
	if name == "" {
		return credential{}, nil
	}
	a, err := askHelper(ctx, name, server)
	if errors.Is(err, errNoCredentials) {
		return credential{}, nil
	}
	if err != nil {
		return credential{}, fmt.Errorf("%s: %w", file, err)
	}
	return a.credential(fmt.Sprintf("%s (docker-credential-%s)", file, name))
}
