package cni

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
)

const dualStack = `{"cniVersion":"1.1.0",
"interfaces":[{"name":"cni0","mac":"aa:aa:aa:aa:aa:aa"},{"name":"eth0","mac":"bb:bb:bb:bb:bb:bb","sandbox":"/run/netns/x"}],
"ips":[{"interface":0,"address":"10.0.0.1/24"},{"interface":1,"address":"fd00::2/64"},{"interface":1,"address":"10.0.0.2/24"},{"interface":1,"address":"10.0.0.2/24"}],
"dns":{"nameservers":["10.0.0.53"]}}`

func convert(t *testing.T, text, ifName string) (*Result, error) {
	t.Helper()
	raw, err := create.CreateFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return convertResult(raw, ifName)
}

func TestConvertResult(t *testing.T) {
	tests := []struct {
		name, text, ifName string
		want               []string
		err                string
	}{
		{name: "dual stack in the plugins' order", text: dualStack, ifName: "eth0", want: []string{"fd00::2", "10.0.0.2"}},
		{name: "another interface", text: dualStack, ifName: "eth1", err: "no address for eth1"},
		{name: "version 0.2", text: `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"},"ip6":{"ip":"fd00::2/64"}}`, ifName: "eth0", want: []string{"10.0.0.2", "fd00::2"}},
		{name: "version 0.4", text: `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}`, ifName: "eth0", want: []string{"10.0.0.2"}},
		{name: "nothing", text: `{"cniVersion":"1.0.0"}`, ifName: "eth0", err: "no address"},
		{name: "index beyond", text: `{"cniVersion":"1.0.0","ips":[{"interface":3,"address":"10.0.0.2/24"}]}`, ifName: "eth0", err: "ips[0]: interface 3 of 0"},
		{name: "negative index", text: `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"interface":-1,"address":"10.0.0.2/24"}]}`, ifName: "eth0", err: "ips[0]: interface -1"},
		{name: "null interface", text: `{"cniVersion":"1.0.0","interfaces":[null]}`, ifName: "eth0", err: "interfaces[0] is null"},
		{name: "null ip", text: `{"cniVersion":"1.0.0","ips":[null]}`, ifName: "eth0", err: "ips[0]: null"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := convert(t, tt.text, tt.ifName)
			if tt.err != "" {
				wantErr(t, "convertResult", err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, ip := range r.IPs {
				got = append(got, ip.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("IPs = %v; want %v", got, tt.want)
			}
		})
	}
	r, err := convert(t, dualStack, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if i := r.Interfaces[1]; i.MAC != "bb:bb:bb:bb:bb:bb" || i.IPs[0] != netip.MustParsePrefix("fd00::2/64") || r.DNS.Servers[0] != "10.0.0.53" {
		t.Errorf("Result = %+v", r)
	}
}

func FuzzConvertResult(f *testing.F) {
	f.Add([]byte(dualStack))
	f.Add([]byte(`{"cniVersion":"0.4.0","ips":[null],"interfaces":[null],"routes":[null]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"0.0.0.0/0"}]}}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","ips":[{"version":"6","interface":0,"address":"::1/128"}],"interfaces":[{"name":"eth0","sandbox":"x"}]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","ips":[null],"interfaces":[null],"routes":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if checkResult(data) != nil {
			return
		}
		raw, err := create.CreateFromBytes(data)
		if err != nil {
			return
		}
		r, err := convertResult(raw, "eth0")
		if err == nil && (len(r.IPs) == 0 || !r.IPs[0].IsValid() || len(r.Raw) == 0) {
			t.Errorf("convertResult(%s) = %+v", data, r)
		}
	})
}

func TestPluginMessage(t *testing.T) {
	exit := errors.New("exit status 1")
	for _, tt := range []struct{ stdout, stderr, want string }{
		{`{"code":11,"msg":"try later","details":"soon"}`, "x", "try later; soon (code 11)"},
		{"{}", "panic: x\n", "exit status 1: panic: x"},
		{"not json", "", "exit status 1: not json"},
		{"", "", "exit status 1, without a message"},
		{"null", "\xff", "exit status 1: "},
	} {
		if got := pluginMessage(exit, []byte(tt.stdout), []byte(tt.stderr)); got.Error() != tt.want {
			t.Errorf("pluginMessage(%q, %q) = %q; want %q", tt.stdout, tt.stderr, got, tt.want)
		}
	}
	var e *types.Error
	if err := pluginMessage(exit, []byte(`{"code":11,"msg":"x"}`), nil); !errors.As(err, &e) || e.Code != 11 {
		t.Errorf("pluginMessage = %v; want a *types.Error of code 11", err)
	}
}
