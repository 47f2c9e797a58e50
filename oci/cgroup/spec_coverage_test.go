package cgroup

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// resourceCase sets one field over a base, both JSON. The plan changes with it, or the error names a word of it. none says
// why there is nothing to be done on a version.
type resourceCase struct {
	base, set string
	refused   map[Mode]string
	none      map[Mode]string
}

const memoryBase = `{"memory":{"limit":100,"swap":150}}`

func blockDevice(list, fields string) string {
	return `{"blockIO":{"` + list + `":[{` + fields + `}]}}`
}

// resourceCoverage has every field of specs.LinuxResources once, named as in oci's specCoverage.
var resourceCoverage = map[string]resourceCase{
	"devices[].allow":  {base: `{"devices":[{"access":"rwm"}]}`, set: `{"devices":[{"allow":true,"access":"rwm"}]}`},
	"devices[].type":   {base: `{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}]}`, set: `{"devices":[{"allow":true,"type":"b","major":1,"minor":3,"access":"r"}]}`},
	"devices[].major":  {base: `{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}]}`, set: `{"devices":[{"allow":true,"type":"c","major":2,"minor":3,"access":"r"}]}`},
	"devices[].minor":  {base: `{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}]}`, set: `{"devices":[{"allow":true,"type":"c","major":1,"minor":4,"access":"r"}]}`},
	"devices[].access": {base: `{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}]}`, set: `{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"w"}]}`},

	"memory.limit":            {set: `{"memory":{"limit":100}}`},
	"memory.reservation":      {set: `{"memory":{"reservation":100}}`},
	"memory.swap":             {base: `{"memory":{"limit":100}}`, set: `{"memory":{"swap":150}}`},
	"memory.kernel":           {set: `{"memory":{"kernel":100}}`, refused: map[Mode]string{V2: "memory.kernel"}},
	"memory.kernelTCP":        {set: `{"memory":{"kernelTCP":100}}`, refused: map[Mode]string{V2: "memory.kernelTCP"}},
	"memory.swappiness":       {set: `{"memory":{"swappiness":10}}`, refused: map[Mode]string{V2: "memory.swappiness"}},
	"memory.disableOOMKiller": {set: `{"memory":{"disableOOMKiller":true}}`, refused: map[Mode]string{V2: "memory.disableOOMKiller"}},
	"memory.useHierarchy":     {set: `{"memory":{"useHierarchy":false}}`, refused: map[Mode]string{V2: "memory.useHierarchy"}},
	"memory.checkBeforeUpdate": {base: memoryBase, set: `{"memory":{"checkBeforeUpdate":true}}`,
		none: map[Mode]string{V1: "its kernel refuses a limit below the usage by itself"}},

	"cpu.shares":          {set: `{"cpu":{"shares":512}}`},
	"cpu.quota":           {base: `{"cpu":{"period":100000}}`, set: `{"cpu":{"quota":5000}}`},
	"cpu.burst":           {base: `{"cpu":{"period":100000,"quota":5000}}`, set: `{"cpu":{"burst":100}}`},
	"cpu.period":          {base: `{"cpu":{"quota":5000}}`, set: `{"cpu":{"period":50000}}`},
	"cpu.realtimeRuntime": {set: `{"cpu":{"realtimeRuntime":100}}`, refused: map[Mode]string{V2: "cpu.realtimeRuntime"}},
	"cpu.realtimePeriod":  {set: `{"cpu":{"realtimePeriod":100}}`, refused: map[Mode]string{V2: "cpu.realtimePeriod"}},
	"cpu.cpus":            {set: `{"cpu":{"cpus":"0"}}`},
	"cpu.mems":            {set: `{"cpu":{"mems":"0"}}`},
	"cpu.idle":            {set: `{"cpu":{"idle":1}}`},
	"pids.limit":          {set: `{"pids":{"limit":7}}`},

	"blockIO.weight":                    {set: `{"blockIO":{"weight":300}}`},
	"blockIO.leafWeight":                {set: `{"blockIO":{"leafWeight":300}}`, refused: map[Mode]string{V2: "blockIO.leafWeight"}},
	"blockIO.weightDevice[].major":      {base: blockDevice("weightDevice", `"major":8,"minor":0,"weight":300`), set: blockDevice("weightDevice", `"major":9,"minor":0,"weight":300`)},
	"blockIO.weightDevice[].minor":      {base: blockDevice("weightDevice", `"major":8,"minor":0,"weight":300`), set: blockDevice("weightDevice", `"major":8,"minor":16,"weight":300`)},
	"blockIO.weightDevice[].weight":     {base: blockDevice("weightDevice", `"major":8,"minor":0,"weight":300`), set: blockDevice("weightDevice", `"major":8,"minor":0,"weight":400`)},
	"blockIO.weightDevice[].leafWeight": {set: blockDevice("weightDevice", `"major":8,"minor":0,"leafWeight":300`), refused: map[Mode]string{V2: "leafWeight"}},

	"hugepageLimits[].pageSize":     {base: `{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}`, set: `{"hugepageLimits":[{"pageSize":"1GB","limit":1}]}`},
	"hugepageLimits[].limit":        {base: `{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}`, set: `{"hugepageLimits":[{"pageSize":"2MB","limit":2}]}`},
	"network.classID":               {set: `{"network":{"classID":5}}`, refused: map[Mode]string{V2: "network"}},
	"network.priorities[].name":     {set: `{"network":{"priorities":[{"name":"lo","priority":1}]}}`, refused: map[Mode]string{V2: "network"}},
	"network.priorities[].priority": {set: `{"network":{"priorities":[{"name":"lo","priority":2}]}}`, refused: map[Mode]string{V2: "network"}},
	"rdma{}.hcaHandles":             {set: `{"rdma":{"a":{"hcaHandles":1}}}`},
	"rdma{}.hcaObjects":             {set: `{"rdma":{"a":{"hcaObjects":1}}}`},
	"unified":                       {set: `{"unified":{"memory.high":"1"}}`, refused: map[Mode]string{V1: "unified"}},
}

func init() {
	for _, list := range []string{"throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice"} {
		base := blockDevice(list, `"major":8,"minor":0,"rate":5`)
		for field, fields := range map[string]string{
			"major": `"major":9,"minor":0,"rate":5`, "minor": `"major":8,"minor":1,"rate":5`, "rate": `"major":8,"minor":0,"rate":6`,
		} {
			resourceCoverage["blockIO."+list+"[]."+field] = resourceCase{base: base, set: blockDevice(list, fields)}
		}
	}
}

// TestEveryResource walks the resources of the specification: a field that a later version adds is neither
// honoured nor refused, and fails it.
func TestEveryResource(t *testing.T) {
	seen := map[string]bool{}
	walkResources(t, reflect.TypeFor[specs.LinuxResources](), "", seen)
	for path := range resourceCoverage {
		if !seen[path] {
			t.Errorf("%s is no field of the specification", path)
		}
	}
}

func walkResources(t *testing.T, typ reflect.Type, path string, seen map[string]bool) {
	t.Helper()
	if c, ok := resourceCoverage[path]; ok {
		seen[path] = true
		for _, mode := range []Mode{V1, V2} {
			t.Run(fmt.Sprint(path, "/", mode), func(t *testing.T) { c.check(t, mode) })
		}
		return
	}
	switch typ.Kind() {
	case reflect.Pointer:
		walkResources(t, typ.Elem(), path, seen)
	case reflect.Slice:
		walkResources(t, typ.Elem(), path+"[]", seen)
	case reflect.Map:
		walkResources(t, typ.Elem(), path+"{}", seen)
	case reflect.Struct:
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous {
				walkResources(t, f.Type, path, seen)
				continue
			}
			walkResources(t, f.Type, strings.TrimPrefix(path+"."+name, "."), seen)
		}
	default:
		t.Errorf("%s is neither honoured nor refused", path)
	}
}

func (c resourceCase) check(t *testing.T, mode Mode) {
	before, err := planOf(t, mode, c.base)
	if err != nil {
		t.Fatalf("plan of the base: %v", err)
	}
	after, err := planOf(t, mode, c.base, c.set)
	if word := c.refused[mode]; word != "" {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("plan = %v; want an error about %s", err, word)
		}
		return
	}
	if err != nil {
		t.Fatalf("plan = %v", err)
	}
	if changed := before != after; changed == (c.none[mode] != "") {
		t.Errorf("the plan changes with the field: %v; none: %q", changed, c.none[mode])
	}
}

func planOf(t *testing.T, mode Mode, patches ...string) (string, error) {
	t.Helper()
	r := &specs.LinuxResources{}
	for _, p := range patches {
		if p == "" {
			continue
		}
		if err := json.Unmarshal([]byte(p), r); err != nil {
			t.Fatal(err)
		}
	}
	p, err := (&Host{mode: mode}).plan(r, func(string, string) (string, error) { return "", nil })
	if err != nil {
		return "", err
	}
	devices := ""
	if p.devices != nil {
		devices = fmt.Sprintf("%+v", *p.devices)
	}
	return strings.Join(lines(p.settings), "\n") + devices + fmt.Sprint(p.check), nil
}
