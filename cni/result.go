package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Result is what ADD gave a pod.
type Result struct {
	// IPs are the addresses of the attached interface: at least one, the plugins' first (primary)
	// first, both families where the network is dual stack.
	IPs        []netip.Addr
	Interfaces []Interface
	DNS        DNS
	Raw        json.RawMessage // the CNI result (version 1.1)
}

// Interface is one that the plugins made or used.
type Interface struct {
	Name    string
	MAC     string // "" where the plugin does not say
	Sandbox string // path of the network namespace; "" is the host's
	IPs     []netip.Prefix
}

// convertResult reads the result of ADD for the interface ifName.
func convertResult(raw types.Result, ifName string) (*Result, error) {
	r, err := types100.NewResultFromResult(raw)
	if err != nil {
		return nil, fmt.Errorf("cni result: %w", err)
	}
	out := &Result{DNS: DNS{Servers: r.DNS.Nameservers, Searches: r.DNS.Search, Options: r.DNS.Options}}
	for i, intf := range r.Interfaces {
		if intf == nil {
			return nil, fmt.Errorf("cni result: interfaces[%d] is null", i)
		}
		out.Interfaces = append(out.Interfaces, Interface{Name: intf.Name, MAC: intf.Mac, Sandbox: intf.Sandbox})
	}
	for i, ip := range r.IPs {
		if err := out.addIP(ip, ifName); err != nil {
			return nil, fmt.Errorf("cni result: ips[%d]: %w", i, err)
		}
	}
	if len(out.IPs) == 0 {
		return nil, fmt.Errorf("cni result: no address for %s", ifName)
	}
	if out.Raw, err = json.Marshal(r); err != nil {
		return nil, fmt.Errorf("cni result: %w", err)
	}
	return out, nil
}

// addIP notes an address. One that names no interface belongs to the attached one (CNI versions before 0.3 know no
// interfaces).
func (r *Result) addIP(c *types100.IPConfig, ifName string) error {
	if c == nil {
		return errors.New("null")
	}
	addr, ok := netip.AddrFromSlice(c.Address.IP)
	if !ok {
		return fmt.Errorf("address %q is not one", c.Address.IP)
	}
	addr = addr.Unmap()
	if c.Interface != nil {
		i := *c.Interface
		if i < 0 || i >= len(r.Interfaces) {
			return fmt.Errorf("interface %d of %d", i, len(r.Interfaces))
		}
		intf := &r.Interfaces[i]
		bits, _ := c.Address.Mask.Size()
		intf.IPs = append(intf.IPs, netip.PrefixFrom(addr, bits))
		if intf.Sandbox == "" || intf.Name != ifName {
			return nil
		}
	}
	if !slices.Contains(r.IPs, addr) {
		r.IPs = append(r.IPs, addr)
	}
	return nil
}

// checkResult refuses a result whose lists have null entries: libcni's conversions between versions
// take them for pointers that are never nil.
func checkResult(stdout []byte) error {
	var lists struct {
		Interfaces, IPs, Routes []json.RawMessage
	}
	if err := json.Unmarshal(stdout, &lists); err != nil {
		return fmt.Errorf("result: %w", err)
	}
	for name, list := range map[string][]json.RawMessage{"interfaces": lists.Interfaces, "ips": lists.IPs, "routes": lists.Routes} {
		for i, entry := range list {
			if string(entry) == "null" {
				return fmt.Errorf("result: %s[%d] is null", name, i)
			}
		}
	}
	return nil
}

// pluginMessage is what a plugin that exited with an error has to say: CNI's error object on stdout,
// or whatever else it wrote.
func pluginMessage(exit error, stdout, stderr []byte) error {
	var e types.Error
	if err := json.Unmarshal(stdout, &e); err == nil && (e.Msg != "" || e.Code != 0) {
		e.Msg, e.Details = clip([]byte(e.Msg)), clip([]byte(e.Details))
		return fmt.Errorf("%w (code %d)", &e, e.Code)
	}
	if text := bytes.TrimSpace(stderr); len(text) > 0 {
		return fmt.Errorf("%w: %s", exit, clip(text))
	}
	if text := bytes.TrimSpace(stdout); len(text) > 0 {
		return fmt.Errorf("%w: %s", exit, clip(text))
	}
	return fmt.Errorf("%w, without a message", exit)
}

// clip keeps an error readable: the end of a long output is where the cause is.
func clip(text []byte) string {
	const most = 2048
	if len(text) > most {
		return "…" + string(bytes.ToValidUTF8(text[len(text)-most:], nil))
	}
	return string(bytes.ToValidUTF8(text, nil))
}
