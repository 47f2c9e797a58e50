package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// coverage says what becomes of one field of the specification. With set laid over base over a minimal specification,
// Compile gives something else than without set (honoured), or an error about that field (refused).
type coverage struct {
	base, set string // JSON
	refused   string // the field that the error names; "" is honoured
	// by names who honours a field that is not Compile's.
	by string
}

const (
	newUser = `{"linux":{"namespaces":[{"type":"mount"},{"type":"user"}],
		"uidMappings":[{"containerID":0,"hostID":9,"size":9}],"gidMappings":[{"containerID":0,"hostID":9,"size":9}]}}`
	newTime  = `{"linux":{"namespaces":[{"type":"mount"},{"type":"time"}]}}`
	hook     = `[{"path":"/h"}]`
	oneMount = `{"mounts":[{"destination":"/m","type":"tmpfs","source":"a"}]}`
	idmapped = `{"mounts":[{"destination":"/m","type":"bind","source":"/","options":["idmap"],` +
		`"uidMappings":[{"containerID":0,"hostID":1,"size":1}],"gidMappings":[{"containerID":0,"hostID":1,"size":1}]}]}`
	filter     = `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW"}]}}}`
	listener   = `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/l","syscalls":[{"names":["getpid"],"action":"SCMP_ACT_NOTIFY"}]}}}`
	oneDevice  = `{"linux":{"devices":[{"path":"/dev/a","type":"c","major":1,"minor":3}]}}`
	deadline   = `{"process":{"scheduler":{"policy":"SCHED_DEADLINE"}}}`
	interleave = `{"linux":{"memoryPolicy":{"mode":"MPOL_INTERLEAVE","nodes":"0"}}}`
)

func mapping(kind, ids string) string {
	return `{"linux":{"` + kind + `":[` + ids + `]}}`
}

func mountMapping(kind, ids string) string {
	return strings.Replace(idmapped, `"`+kind+`":[{"containerID":0,"hostID":1,"size":1}]`, `"`+kind+`":[`+ids+`]`, 1)
}

func filterWith(s string) string { return `{"linux":{"seccomp":{` + s + `}}}` }

// specCoverage has every field of specs.Spec once, by its name in JSON; "[]" is an element of a list, "{}" a value of a map.
// An entry for a structure stands for all that is in it.
var specCoverage = map[string]coverage{
	"ociVersion":  {set: `{"ociVersion":"2.0.0"}`, refused: "ociVersion"},
	"annotations": {base: `{"hooks":{"createContainer":` + hook + `}}`, set: `{"annotations":{"a":"b"}}`},
	"hostname":    {set: `{"hostname":"h"}`},
	"domainname":  {set: `{"domainname":"d"}`},

	"process.terminal":                 {set: `{"process":{"terminal":true}}`},
	"process.consoleSize.height":       {base: `{"process":{"terminal":true,"consoleSize":{"width":2}}}`, set: `{"process":{"consoleSize":{"height":3}}}`},
	"process.consoleSize.width":        {base: `{"process":{"terminal":true,"consoleSize":{"height":2}}}`, set: `{"process":{"consoleSize":{"width":3}}}`},
	"process.user.uid":                 {set: `{"process":{"user":{"uid":5}}}`},
	"process.user.gid":                 {set: `{"process":{"user":{"gid":5}}}`},
	"process.user.umask":               {set: `{"process":{"user":{"umask":18}}}`},
	"process.user.additionalGids":      {set: `{"process":{"user":{"additionalGids":[5]}}}`},
	"process.user.username":            {set: `{"process":{"user":{"username":"x"}}}`, refused: "process.user.username"},
	"process.args":                     {set: `{"process":{"args":["/x"]}}`},
	"process.commandLine":              {set: `{"process":{"commandLine":"x"}}`, refused: "process.commandLine"},
	"process.env":                      {set: `{"process":{"env":["A=b"]}}`},
	"process.cwd":                      {set: `{"process":{"cwd":"/tmp"}}`},
	"process.capabilities.bounding":    {set: `{"process":{"capabilities":{"bounding":["CAP_KILL"]}}}`},
	"process.capabilities.effective":   {set: `{"process":{"capabilities":{"effective":["CAP_KILL"]}}}`},
	"process.capabilities.inheritable": {set: `{"process":{"capabilities":{"inheritable":["CAP_KILL"]}}}`},
	"process.capabilities.permitted":   {set: `{"process":{"capabilities":{"permitted":["CAP_KILL"]}}}`},
	"process.capabilities.ambient":     {set: `{"process":{"capabilities":{"ambient":["CAP_KILL"]}}}`},
	"process.rlimits[].type":           {base: `{"process":{"rlimits":[{"type":"RLIMIT_CORE","hard":2,"soft":1}]}}`, set: `{"process":{"rlimits":[{"type":"RLIMIT_CPU","hard":2,"soft":1}]}}`},
	"process.rlimits[].hard":           {base: `{"process":{"rlimits":[{"type":"RLIMIT_CORE","hard":2,"soft":1}]}}`, set: `{"process":{"rlimits":[{"type":"RLIMIT_CORE","hard":3,"soft":1}]}}`},
	"process.rlimits[].soft":           {base: `{"process":{"rlimits":[{"type":"RLIMIT_CORE","hard":2,"soft":1}]}}`, set: `{"process":{"rlimits":[{"type":"RLIMIT_CORE","hard":2,"soft":2}]}}`},
	"process.noNewPrivileges":          {set: `{"process":{"noNewPrivileges":true}}`},
	"process.apparmorProfile":          {set: `{"process":{"apparmorProfile":"p"}}`},
	"process.selinuxLabel":             {set: `{"process":{"selinuxLabel":"l"}}`},
	"process.oomScoreAdj":              {set: `{"process":{"oomScoreAdj":5}}`},
	"process.scheduler.policy":         {set: `{"process":{"scheduler":{"policy":"SCHED_BATCH"}}}`},
	"process.scheduler.nice":           {base: `{"process":{"scheduler":{"policy":"SCHED_OTHER"}}}`, set: `{"process":{"scheduler":{"nice":3}}}`},
	"process.scheduler.priority":       {base: `{"process":{"scheduler":{"policy":"SCHED_RR"}}}`, set: `{"process":{"scheduler":{"priority":3}}}`},
	"process.scheduler.flags":          {base: deadline, set: `{"process":{"scheduler":{"flags":["SCHED_FLAG_RECLAIM"]}}}`},
	"process.scheduler.runtime":        {base: deadline, set: `{"process":{"scheduler":{"runtime":3}}}`},
	"process.scheduler.deadline":       {base: deadline, set: `{"process":{"scheduler":{"deadline":3}}}`},
	"process.scheduler.period":         {base: deadline, set: `{"process":{"scheduler":{"period":3}}}`},
	"process.ioPriority.class":         {set: `{"process":{"ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":0}}}`},
	"process.ioPriority.priority":      {base: `{"process":{"ioPriority":{"class":"IOPRIO_CLASS_BE"}}}`, set: `{"process":{"ioPriority":{"priority":3}}}`},
	"process.execCPUAffinity":          {set: `{"process":{"execCPUAffinity":{"initial":"0","final":"0"}}}`, by: "CompileExec: TestCompileExec, TestSpecFeaturesExec"},

	"root.path":     {set: `{"root":{"path":"/other"}}`},
	"root.readonly": {set: `{"root":{"readonly":true}}`},

	"mounts[].destination":               {base: oneMount, set: `{"mounts":[{"destination":"/n","type":"tmpfs","source":"a"}]}`},
	"mounts[].type":                      {base: oneMount, set: `{"mounts":[{"destination":"/m","type":"proc","source":"a"}]}`},
	"mounts[].source":                    {base: oneMount, set: `{"mounts":[{"destination":"/m","type":"tmpfs","source":"b"}]}`},
	"mounts[].options":                   {base: oneMount, set: `{"mounts":[{"destination":"/m","type":"tmpfs","source":"a","options":["ro"]}]}`},
	"mounts[].uidMappings[].containerID": {base: idmapped, set: mountMapping("uidMappings", `{"containerID":4294967295,"hostID":1,"size":2}`), refused: "mounts[0].uidMappings[0].size", by: "the kernel: TestIDMappedMount"},
	"mounts[].uidMappings[].hostID":      {base: idmapped, set: mountMapping("uidMappings", `{"containerID":0,"hostID":4294967295,"size":2}`), refused: "mounts[0].uidMappings[0].size", by: "the kernel: TestIDMappedMount"},
	"mounts[].uidMappings[].size":        {base: idmapped, set: mountMapping("uidMappings", `{"containerID":0,"hostID":1,"size":0}`), refused: "mounts[0].uidMappings[0].size", by: "the kernel: TestIDMappedMount"},
	"mounts[].gidMappings[].containerID": {base: idmapped, set: mountMapping("gidMappings", `{"containerID":4294967295,"hostID":1,"size":2}`), refused: "mounts[0].gidMappings[0].size", by: "the kernel: TestIDMappedMount"},
	"mounts[].gidMappings[].hostID":      {base: idmapped, set: mountMapping("gidMappings", `{"containerID":0,"hostID":4294967295,"size":2}`), refused: "mounts[0].gidMappings[0].size", by: "the kernel: TestIDMappedMount"},
	"mounts[].gidMappings[].size":        {base: idmapped, set: mountMapping("gidMappings", `{"containerID":0,"hostID":1,"size":0}`), refused: "mounts[0].gidMappings[0].size", by: "the kernel: TestIDMappedMount"},

	"linux.uidMappings[].containerID": {base: newUser, set: mapping("uidMappings", `{"containerID":1,"hostID":9,"size":9}`), refused: "linux.uidMappings", by: "the kernel: TestUserNamespaceContainer"},
	"linux.uidMappings[].hostID":      {base: newUser, set: mapping("uidMappings", `{"containerID":0,"hostID":8,"size":9}`)},
	"linux.uidMappings[].size":        {base: newUser, set: mapping("uidMappings", `{"containerID":0,"hostID":9,"size":0}`), refused: "linux.uidMappings[0].size", by: "the kernel: TestUserNamespaceContainer"},
	"linux.gidMappings[].containerID": {base: newUser, set: mapping("gidMappings", `{"containerID":1,"hostID":9,"size":9}`), refused: "linux.gidMappings", by: "the kernel: TestUserNamespaceContainer"},
	"linux.gidMappings[].hostID":      {base: newUser, set: mapping("gidMappings", `{"containerID":0,"hostID":4294967295,"size":9}`), refused: "linux.gidMappings[0].size", by: "the kernel: TestUserNamespaceContainer"},
	"linux.gidMappings[].size":        {base: newUser, set: mapping("gidMappings", `{"containerID":0,"hostID":9,"size":0}`), refused: "linux.gidMappings[0].size", by: "the kernel: TestUserNamespaceContainer"},
	"linux.namespaces[].type":         {set: `{"linux":{"namespaces":[{"type":"mount"},{"type":"ipc"}]}}`},
	"linux.namespaces[].path":         {base: `{"linux":{"namespaces":[{"type":"mount"},{"type":"ipc"}]}}`, set: `{"linux":{"namespaces":[{"type":"mount"},{"type":"ipc","path":"/i"}]}}`},
	"linux.timeOffsets{}.secs":        {base: newTime, set: `{"linux":{"timeOffsets":{"boottime":{"secs":1}}}}`},
	"linux.timeOffsets{}.nanosecs":    {base: newTime, set: `{"linux":{"timeOffsets":{"boottime":{"nanosecs":1}}}}`},
	"linux.sysctl":                    {set: `{"linux":{"sysctl":{"net.ipv4.ip_forward":"1"}}}`},
	"linux.cgroupsPath":               {set: `{"linux":{"cgroupsPath":"/a"}}`, by: "oci/container and Params.CgroupPath"},
	"linux.resources":                 {set: `{"linux":{"resources":{"pids":{"limit":1}}}}`, by: "oci/cgroup: TestEveryResource"},
	"linux.devices[].path":            {base: oneDevice, set: `{"linux":{"devices":[{"path":"/dev/b","type":"c","major":1,"minor":3}]}}`},
	"linux.devices[].type":            {base: oneDevice, set: `{"linux":{"devices":[{"path":"/dev/a","type":"b","major":1,"minor":3}]}}`},
	"linux.devices[].major":           {base: oneDevice, set: `{"linux":{"devices":[{"path":"/dev/a","type":"c","major":2,"minor":3}]}}`},
	"linux.devices[].minor":           {base: oneDevice, set: `{"linux":{"devices":[{"path":"/dev/a","type":"c","major":1,"minor":4}]}}`},
	"linux.devices[].fileMode":        {base: oneDevice, set: `{"linux":{"devices":[{"path":"/dev/a","type":"c","major":1,"minor":3,"fileMode":384}]}}`},
	"linux.devices[].uid":             {base: oneDevice, set: `{"linux":{"devices":[{"path":"/dev/a","type":"c","major":1,"minor":3,"uid":4}]}}`},
	"linux.devices[].gid":             {base: oneDevice, set: `{"linux":{"devices":[{"path":"/dev/a","type":"c","major":1,"minor":3,"gid":4}]}}`},
	"linux.netDevices{}.name":         {base: `{"linux":{"namespaces":[{"type":"mount"},{"type":"network"}]}}`, set: `{"linux":{"netDevices":{"eth0":{"name":"a"}}}}`, by: "HookGate: TestNetDevices of cmd/cri-shim-oci"},
	"linux.rootfsPropagation":         {set: `{"linux":{"rootfsPropagation":"shared"}}`},
	"linux.maskedPaths":               {set: `{"linux":{"maskedPaths":["/a"]}}`},
	"linux.readonlyPaths":             {set: `{"linux":{"readonlyPaths":["/a"]}}`},
	"linux.mountLabel":                {base: oneMount, set: `{"linux":{"mountLabel":"l"}}`},
	"linux.intelRdt":                  {set: `{"linux":{"intelRdt":{"closID":"a"}}}`},
	"linux.memoryPolicy.mode":         {base: interleave, set: `{"linux":{"memoryPolicy":{"mode":"MPOL_BIND"}}}`},
	"linux.memoryPolicy.nodes":        {base: interleave, set: `{"linux":{"memoryPolicy":{"nodes":"0-1"}}}`},
	"linux.memoryPolicy.flags":        {base: interleave, set: `{"linux":{"memoryPolicy":{"flags":["MPOL_F_STATIC_NODES"]}}}`},
	"linux.personality.domain":        {base: `{"linux":{"personality":{"domain":"LINUX"}}}`, set: `{"linux":{"personality":{"domain":"LINUX32"}}}`},
	"linux.personality.flags":         {base: `{"linux":{"personality":{"domain":"LINUX"}}}`, set: `{"linux":{"personality":{"flags":["x"]}}}`, refused: "linux.personality.flags"},

	"linux.seccomp.defaultAction":           {base: filter, set: filterWith(`"defaultAction":"SCMP_ACT_KILL"`)},
	"linux.seccomp.defaultErrnoRet":         {base: filter, set: filterWith(`"defaultErrnoRet":7`)},
	"linux.seccomp.architectures":           {base: filter, set: filterWith(`"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_AARCH64","SCMP_ARCH_ARM"]`)},
	"linux.seccomp.flags":                   {base: filter, set: filterWith(`"flags":["SECCOMP_FILTER_FLAG_LOG"]`)},
	"linux.seccomp.listenerPath":            {base: listener, set: filterWith(`"listenerPath":"/m"`)},
	"linux.seccomp.listenerMetadata":        {base: listener, set: filterWith(`"listenerMetadata":"m"`)},
	"linux.seccomp.syscalls[].names":        {base: filter, set: filterWith(`"syscalls":[{"names":["getuid"],"action":"SCMP_ACT_ALLOW"}]`)},
	"linux.seccomp.syscalls[].action":       {base: filter, set: filterWith(`"syscalls":[{"names":["getpid"],"action":"SCMP_ACT_KILL"}]`)},
	"linux.seccomp.syscalls[].errnoRet":     {base: filter, set: filterWith(`"syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":9}]`)},
	"linux.seccomp.syscalls[].args[].index": {base: filter, set: filterWith(`"syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}]`)},
	"linux.seccomp.syscalls[].args[].value": {base: filter, set: filterWith(`"syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]`)},
	"linux.seccomp.syscalls[].args[].valueTwo": {base: filterWith(`"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]}]`),
		set: filterWith(`"syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":3,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"}]}]`)},
	"linux.seccomp.syscalls[].args[].op": {base: filter, set: filterWith(`"syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_NE"}]}]`)},

	"solaris": {set: `{"solaris":{}}`, refused: "solaris"},
	"windows": {set: `{"windows":{"layerFolders":[]}}`, refused: "windows"},
	"vm":      {set: `{"vm":{"kernel":{"path":"/k"}}}`, refused: "vm"},
	"zos":     {set: `{"zos":{}}`, refused: "zos"},
	"freebsd": {set: `{"freebsd":{}}`, refused: "freebsd"},
}

func init() {
	for _, kind := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		base := `{"hooks":{"` + kind + `":` + hook + `}}`
		for field, value := range map[string]string{"path": `"path":"/i"`, "args": `"path":"/h","args":["a"]`, "env": `"path":"/h","env":["a=b"]`, "timeout": `"path":"/h","timeout":3`} {
			specCoverage["hooks."+kind+"[]."+field] = coverage{base: base, set: `{"hooks":{"` + kind + `":[{` + value + `}]}}`}
		}
	}
}

// TestEveryField walks the specification: a field that a later version adds is neither honoured nor refused, and fails it.
func TestEveryField(t *testing.T) {
	seen := map[string]bool{}
	walkFields(t, reflect.TypeFor[specs.Spec](), "", seen)
	for path := range specCoverage {
		if !seen[path] {
			t.Errorf("%s is no field of the specification", path)
		}
	}
}

func walkFields(t *testing.T, typ reflect.Type, path string, seen map[string]bool) {
	t.Helper()
	if c, ok := specCoverage[path]; ok {
		seen[path] = true
		t.Run(path, func(t *testing.T) { c.check(t) })
		return
	}
	switch typ.Kind() {
	case reflect.Pointer:
		walkFields(t, typ.Elem(), path, seen)
	case reflect.Slice:
		walkFields(t, typ.Elem(), path+"[]", seen)
	case reflect.Map:
		walkFields(t, typ.Elem(), path+"{}", seen)
	case reflect.Struct:
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" {
				t.Fatalf("%s.%s has no name in JSON", path, f.Name)
			}
			walkFields(t, f.Type, strings.TrimPrefix(path+"."+name, "."), seen)
		}
	default:
		t.Errorf("%s is neither honoured nor refused", path)
	}
}

func (c coverage) check(t *testing.T) {
	before, err := outcome(t, c.base)
	if err != nil {
		t.Fatalf("Compile of the base: %v", err)
	}
	after, err := outcome(t, c.base, c.set)
	if c.refused != "" {
		var field *FieldError
		var unsupported *UnsupportedError
		switch {
		case errors.As(err, &unsupported) && unsupported.Field == c.refused:
		case errors.As(err, &field) && field.Field == c.refused:
		default:
			t.Errorf("Compile = %v; want an error about %s", err, c.refused)
		}
		return
	}
	if err != nil {
		t.Fatalf("Compile = %v", err)
	}
	if changed := before != after; changed == (c.by != "") {
		t.Errorf("the result changes with the field: %v; honoured by %q", changed, c.by)
	}
}

// outcome is everything that Compile makes of a specification.
func outcome(t *testing.T, patches ...string) (string, error) {
	t.Helper()
	s := minimalSpec()
	for _, p := range patches {
		if p == "" {
			continue
		}
		if err := json.Unmarshal([]byte(p), s); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
	}
	l, err := Compile(s, Options{Seccomp: CompileSeccomp, checkOnly: true})
	if err != nil {
		return "", err
	}
	defer l.Close()
	msg, err := json.Marshal(l.Message)
	if err != nil {
		t.Fatal(err)
	}
	host, err := json.Marshal([]any{l.Host, l.Hooks, l.TimeOffsets})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(string(msg), l.CloneFlags, l.PIDNamespace, l.Terminal, len(l.Files), string(host)), nil
}
