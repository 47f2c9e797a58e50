package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/config"
)

// run runs the program with arguments and returns its standard output.
func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand()
	cmd.Writer, cmd.ErrWriter, cmd.Reader = &out, &out, strings.NewReader(stdin)
	err := cmd.Run(t.Context(), append([]string{"cri-shim"}, args...))
	return out.String(), err
}

func TestConfigCommands(t *testing.T) {
	text, err := run(t, "", "config", "default")
	if err != nil || text != string(config.Render(config.Default())) {
		t.Errorf("config default = %v; want what config renders:\n%s", err, text)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "", "config", "check", "--config", path); err != nil || out != "the configuration is valid\n" {
		t.Errorf("config check of the default = %q, %v; want valid", out, err)
	}
	if err := os.WriteFile(path, []byte("# mine\nlog_levle = 'info'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = run(t, "", "config", "check", "--config", path)
	want := "the configuration is not valid:\n" + path + ":2: log_levle: unknown key; did you mean log_level?"
	if err == nil || err.Error() != want {
		t.Errorf("config check = %v; want %s", err, want)
	}
	// What keeps the daemon from starting is found, too.
	profile := filepath.Join(dir, "seccomp.json")
	if err := os.WriteFile(path, []byte("seccomp_profile = '"+profile+"'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"":                                    "seccomp_profile: seccomp: ",
		"{}":                                  "seccomp_profile: seccomp: profile: defaultAction: missing (in " + profile,
		`{"defaultAction": "SCMP_ACT_NO"}`:    `"SCMP_ACT_NO"`,
		`{"defaultAction": "SCMP_ACT_ERRNO"}`: "",
	} {
		if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := run(t, "", "config", "check", "-c", path); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("config check with the profile %q = %v; want %q", text, err, want)
		}
	}
	program := filepath.Join(dir, "runtime")
	if err := os.WriteFile(path, []byte("[runtimes.other]\npath = '"+program+"'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		mode os.FileMode
		want string
	}{{0, "runtimes.other.path: " + program + ": no such file"}, {0o644, "runtimes.other.path: " + program + " is not executable"}, {0o755, ""}} {
		if tc.mode != 0 {
			if err := errors.Join(os.WriteFile(program, nil, tc.mode), os.Chmod(program, tc.mode)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := run(t, "", "config", "check", "-c", path); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("config check with a runtime of mode %o = %v; want %q", tc.mode, err, tc.want)
		}
	}
	if err := os.WriteFile(path, []byte("log_level = 'debug'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "", "config", "check", "-c", path, "--print"); err != nil || !strings.Contains(out, "\nlog_level = ") {
		t.Errorf("config check --print = %v, %s; want the configuration", err, out)
	}
}

// TestServeFlags: a flag wins over the file and is checked like it.
func TestServeFlags(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte("log_level = 'debug'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		`root: "relative" is not an absolute path`: {"--root", "relative"},
		`log_level: "loud"`:                        {"--log-level", "loud"},
		`log_format: "xml"`:                        {"--log-format", "xml"},
		"serve takes no argument: now":             {"now"},
	} {
		_, err := run(t, "", append([]string{"serve", "--config", path}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("serve %v = %v; want %q", args, err, want)
		}
	}
}

func TestImageCommands(t *testing.T) {
	cfg := testConfig(t)
	startDaemon(t, cfg, &fakeNode{})
	at := "--endpoint=unix://" + cfg.Listen
	id := strings.Repeat("ab", 32)
	for _, tt := range []struct {
		args      []string
		stdin     string
		want, err string
	}{
		{args: []string{"image", "ls", at}, want: "IMAGE            ID            PLATFORM        SIZE\n" +
			"example.org/a:1  abababababab  linux/amd64     4.3 MB\nexample.org/a:1  cdcdcdcdcdcd  linux/arm64/v8  4.2 MB\n<none>           efefefefefef  artifact        0.0 kB\n"},
		{args: []string{"image", "ls", at, "-q"}, want: "sha256:" + id + "\nsha256:" + strings.Repeat("cd", 32) + "\nsha256:" + strings.Repeat("ef", 32) + "\n"},
		{args: []string{"image", "inspect", at}, err: "name at least one image"},
		{args: []string{"image", "pull", at, "--creds", "u:p", "--platform", "linux/arm64", "--platform", "linux/s390x", "x"}, want: "sha256:xupfalse linux/arm64+linux/s390x\n"},
		{args: []string{"image", "pull", at, "--creds", "u:p", "--all-platforms", "x"}, want: "sha256:xuptrue -\n"},
		{args: []string{"image", "pull", at, "--all-platforms", "--platform", "linux/arm64", "x"}, err: "want one of them"},
		{args: []string{"image", "export", at, "--platform", "linux/arm64", "x"}, want: "{[linux/arm64] false}"},
		{args: []string{"image", "export", at, "--all-platforms", "x"}, want: "{[] true}"},
		{args: []string{"image", "export", at, "--all-platforms", "--platform", "linux/arm64", "x"}, err: "want one of them"},
		{args: []string{"image", "pull", at, "--creds", "u:p", "x", "y"}, want: "sha256:xup\nsha256:yup\n"},
		{args: []string{"image", "pull", at, "--creds", "u", "x"}, err: "want USER:PASSWORD"},
		{args: []string{"image", "pull", at}, err: "name at least one image"},
		{args: []string{"image", "rm", at, "a", "b"}},
		{args: []string{"image", "rm", at, "busy"}, err: "remove image busy: busy"},
		{args: []string{"image", "import", at, "-"}, stdin: "an archive", want: "example.org/a:1\n"},
		{args: []string{"image", "export", at, "example.org/a:1"}, want: "an archive"},
		{args: []string{"image", "import", at}, err: "name one archive"},
		{args: []string{"image", "ls", "--endpoint", "/nowhere/cri.sock"}, err: "no daemon at /nowhere/cri.sock"},
		{args: []string{"image", "ls", "--endpoint", "tcp://127.0.0.1:5"}, err: `"tcp://127.0.0.1:5" is no socket's absolute path`},
		{args: []string{"image", "ls", at, "example.org/a:1"}, err: "image ls takes no argument: example.org/a:1"},
		{args: []string{"image", "du", at, "x"}, err: "image du takes no argument: x"},
		{args: []string{"image", "gc", at, "x"}, err: "image gc takes no argument: x"},
		{args: []string{"metrics", at, "x"}, err: "metrics takes no argument: x"},
		{args: []string{"version", "x"}, err: "version takes no argument: x"},
		{args: []string{"config", "default", "x"}, err: "config default takes no argument: x"},
	} {
		out, err := run(t, tt.stdin, tt.args...)
		if tt.err == "" && (err != nil || out != tt.want) || tt.err != "" && (err == nil || !strings.Contains(message(err), tt.err)) {
			t.Errorf("%v = %q, %v; want %q, %q", tt.args, out, err, tt.want, tt.err)
		}
	}
	path := filepath.Join(t.TempDir(), "a.tar")
	if _, err := run(t, "", "image", "export", at, "-o", path, "a"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "an archive" {
		t.Errorf("exported file = %q, %v; want the archive", b, err)
	}
	if _, err := run(t, "", "image", "import", at, path); err != nil {
		t.Errorf("import of the exported file: %v", err)
	}
}

func TestTimelineCommand(t *testing.T) {
	cfg := testConfig(t)
	startDaemon(t, cfg, &fakeNode{})
	at := "--endpoint=" + cfg.Listen
	want := `pod default/web (0123456789abc): 2.000 ms
  namespaces     0.500 ms  ########
  network        1.500 ms  #######################
`
	for _, args := range [][]string{{"timeline", at}, {"timeline", at, "0123"}} {
		if out, err := run(t, "", args...); err != nil || out != want {
			t.Errorf("%v = %v\n%s\nwant\n%s", args, err, out, want)
		}
	}
	if out, err := run(t, "", "timeline", at, "--json"); err != nil || !strings.Contains(out, `"took": 500000`) {
		t.Errorf("timeline --json = %s, %v; want nanoseconds", out, err)
	}
	if _, err := run(t, "", "timeline", at, "ff"); err == nil || !strings.Contains(message(err), "ff: not found") {
		t.Errorf("timeline of an unknown ID = %v; want not found", err)
	}
}

func TestSemantic(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2.3-4-gabcdef0": "1.2.3-4-gabcdef0", "devel": "0.0.0-devel",
		"4a2e383-dirty": "0.0.0-4a2e383-dirty", "v1.2": "0.0.0-v1.2", "a b": "0.0.0-a-b",
	} {
		if got := semantic(in); got != want {
			t.Errorf("semantic(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestHelpAndCompletion(t *testing.T) {
	out, err := run(t, "", "--help")
	for _, want := range []string{"serve", "config", "image", "timeline", "version", "completion"} {
		if err != nil || !strings.Contains(out, "\n   "+want) {
			t.Errorf("--help = %v, without %s:\n%s", err, want, out)
		}
	}
	if out, err := run(t, "", "completion", "bash"); err != nil || !strings.Contains(out, "complete") {
		t.Errorf("completion bash = %q, %v; want a script", out, err)
	}
	if out, err := run(t, "", "version"); err != nil || !strings.HasPrefix(out, "cri-shim ") {
		t.Errorf("version = %q, %v", out, err)
	}
	for _, tt := range []struct{ args, want string }{
		{"serv", `cri-shim has no command "serv"; did you mean serve?`},
		{"-c", "flag provided but not defined: -c (see cri-shim --help)"},
		{"xyz", `cri-shim has no command "xyz" (see cri-shim --help)`},
		{"image pul x", `cri-shim image has no command "pul"; did you mean pull?`},
		{"image ls --all", "flag provided but not defined: -all (see cri-shim image ls --help)"},
		{"completion bsh", `cri-shim completion has no command "bsh"; did you mean bash?`},
	} {
		out, err := run(t, "", strings.Fields(tt.args)...)
		if err == nil || err.Error() != tt.want || out != "" {
			t.Errorf("%s = %v, prints %q; want %s and nothing printed", tt.args, err, out, tt.want)
		}
	}
	for _, args := range []string{"", "image", "config"} {
		if out, err := run(t, "", strings.Fields(args)...); err != nil || !strings.Contains(out, "COMMANDS:") {
			t.Errorf("%q = %q, %v; want its help", args, out, err)
		}
	}
	for _, command := range []string{"pull", "import", "export"} {
		if out, err := run(t, "", "image", command, "--help"); err != nil || !strings.Contains(out, "--all-platforms") {
			t.Errorf("image %s --help = %q, %v; want --all-platforms in it", command, out, err)
		}
	}
	out, err = run(t, "", "image", "--generate-shell-completion")
	for _, want := range []string{"ls:", "pull:", "rm:", "import:", "export:"} {
		if err != nil || !strings.Contains("\n"+out, "\n"+want) {
			t.Errorf("completion of image = %q, %v; want %s in it", out, err, want)
		}
	}
}
