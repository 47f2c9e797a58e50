package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// Validate reports everything that is wrong with c, nothing for a configuration that works. It asks
// nothing of the machine: whether a folder exists is found out where it is used.
func Validate(c Config) Problems {
	v := &validator{}
	v.paths(c)
	v.oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	v.oneOf("log_format", c.LogFormat, "text", "json")
	v.oneOf("nri_enabled", c.NRIEnabled, "auto", "on", "off")
	v.oneOf("snapshotter", c.Snapshotter, "auto", "overlay", "native")
	v.oneOf("layer_format", c.LayerFormat, "auto", "directory", "erofs")
	v.oneOf("layer_compression", c.LayerCompression, "auto", "lz4", "none")
	v.check("layer_format", c.LayerFormat != "erofs" || c.Snapshotter != "native", "erofs does not go with snapshotter = \"native\": copies are made of directories")
	v.oneOf("cgroup_driver", c.CgroupDriver, "cgroupfs", "systemd")
	v.between("pids_limit", c.PidsLimit, 0, 1<<22) // PID_MAX_LIMIT
	v.between("pods_per_supervisor", int64(c.PodsPerSupervisor), 1, 1024)
	v.between("max_concurrent_downloads", int64(c.MaxConcurrentDownloads), 1, 64)
	v.between("max_layer_entries", c.MaxLayerEntries, 1, 1<<32)
	if c.WritableLayerInodes != 0 {
		v.between("writable_layer_inodes", c.WritableLayerInodes, MinLayerInodes, 1<<32)
	}
	if c.GzipProgram != "auto" && c.GzipProgram != "none" {
		v.path("gzip_program", c.GzipProgram)
	}
	v.platform(c.ImagePlatform)
	v.pinned(c.PinnedImages)
	v.ulimits(c.DefaultUlimits)
	for _, name := range c.GPUDriverCapabilities {
		v.oneOf("gpu_driver_capabilities", name, driverCapabilities...)
	}
	for _, name := range c.BuiltinHandlers {
		v.check("builtin_handlers", handlerPattern.MatchString(name), "%q is not a RuntimeClass handler (a DNS label)", name)
	}
	v.streams(c)
	v.metrics(c.MetricsListen)
	v.sizes(c)
	v.durations(c)
	v.runtimes(c.Runtimes, c.BuiltinHandlers)
	return v.problems
}

// driverCapabilities are those of NVIDIA_DRIVER_CAPABILITIES.
var driverCapabilities = []string{"compute", "compat32", "graphics", "utility", "video", "display", "ngx"}

// handlerPattern is Kubernetes' (RuntimeClass.handler).
var handlerPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

type validator struct{ problems Problems }

func (v *validator) check(key string, ok bool, format string, args ...any) {
	if !ok {
		v.problems = append(v.problems, Problem{Key: key, Reason: fmt.Sprintf(format, args...)})
	}
}

func (v *validator) oneOf(key, value string, want ...string) {
	v.check(key, slices.Contains(want, value), "%q is not known; want %s", value, strings.Join(want, " or "))
}

func (v *validator) between(key string, value, low, high int64) {
	v.check(key, low <= value && value <= high, "%d is not between %d and %d", value, low, high)
}

func (v *validator) paths(c Config) {
	for _, path := range []struct{ key, value string }{
		{"root", c.Root}, {"state", c.State}, {"listen", c.Listen}, {"supervisor_cgroup", c.SupervisorCgroup},
		{"cni_conf_dir", c.CNIConfDir}, {"netns_dir", c.NetnsDir},
		{"nri_socket", c.NRISocket}, {"nri_plugin_dir", c.NRIPluginDir}, {"nri_config_dir", c.NRIConfigDir},
		{"signature_sources_dir", c.SignatureSourcesDir},
	} {
		v.path(path.key, path.value)
	}
	for _, path := range []struct{ key, value string }{
		{"seccomp_profile", c.SeccompProfile}, {"rdt_config_file", c.RDTConfigFile}, {"blockio_config_file", c.BlockioConfigFile},
		{"gpu_driver_root", c.GPUDriverRoot}, {"gpu_device_root", c.GPUDeviceRoot},
		{"image_verifier_dir", c.ImageVerifierDir}, {"signature_policy", c.SignaturePolicy}, {"trust_program", c.TrustProgram},
		{"stream_tls_cert", c.StreamTLSCert}, {"stream_tls_key", c.StreamTLSKey},
	} {
		if path.value != "" {
			v.path(path.key, path.value)
		}
	}
	for _, list := range []struct {
		key    string
		values []string
	}{
		{"cni_bin_dirs", c.CNIBinDirs}, {"registry_config_dirs", c.RegistryConfigDirs},
		{"cdi_spec_dirs", c.CDISpecDirs},
		{"registry_auth_files", c.RegistryAuthFiles}, {"decryption_keys", c.DecryptionKeys},
		{"restore_archive_dirs", c.RestoreArchiveDirs},
	} {
		for _, value := range list.values {
			v.path(list.key, value)
		}
	}
	v.check("cni_bin_dirs", len(c.CNIBinDirs) > 0, "is empty; no plugin would be found")
	// sun_path in unix(7) has 108 bytes with the final zero.
	v.check("listen", len(c.Listen) < 108, "is %d bytes long; a socket's path has at most 107", len(c.Listen))
	v.check("supervisor_cgroup", c.SupervisorCgroup != "/", "is the root of the hierarchy, which can have no limits")
	v.check("state", !within(c.State, c.Root) && !within(c.Root, c.State),
		"%q and root %q lie in one another; root outlives a reboot, state must not", c.State, c.Root)
	v.check("apparmor_profile", !strings.ContainsFunc(c.ApparmorProfile, func(r rune) bool { return r < ' ' || r == 0x7f }),
		"%q has control characters", c.ApparmorProfile)
}

func (v *validator) path(key, value string) {
	switch {
	case !filepath.IsAbs(value):
		v.check(key, false, "%q is not an absolute path", value)
	case strings.ContainsRune(value, 0):
		v.check(key, false, "%q has a zero byte", value)
	case filepath.Clean(value) != value:
		v.check(key, false, "%q is not in its shortest form, %q", value, filepath.Clean(value))
	}
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

var platformPattern = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$`)

func (v *validator) platform(p string) {
	v.check("image_platform", p == "" || platformPattern.MatchString(p), "%q is not os/architecture[/variant]", p)
	v.check("image_platform", p == "" || strings.HasPrefix(p, "linux/"), "%q does not run on this system; want linux/...", p)
}

func (v *validator) pinned(images []string) {
	for _, ref := range images {
		prefix, glob := strings.CutSuffix(ref, "*")
		if !glob {
			_, err := reference.ParseNormalizedNamed(ref)
			v.check("pinned_images", err == nil, "%q: %v", ref, err)
			continue
		}
		// What it is compared with begins with a registry's host; "" is a * alone, for all images.
		host, _, ok := strings.Cut(prefix, "/")
		v.check("pinned_images", prefix == "" || ok && (host == "localhost" || strings.ContainsAny(host, ".:")),
			"%q does not begin with a registry, as docker.io/library/* does", ref)
	}
}

func (v *validator) ulimits(list []Ulimit) {
	seen := map[string]bool{}
	for _, u := range list {
		v.check("default_ulimits", !seen[u.Name], "%q is there twice", u.Name)
		seen[u.Name] = true
	}
}

func (v *validator) streams(c Config) {
	host, port, err := net.SplitHostPort(c.StreamListen)
	v.check("stream_listen", err == nil, "%q is not host:port", c.StreamListen)
	if err == nil {
		_, err := strconv.ParseUint(port, 10, 16)
		v.check("stream_listen", err == nil, "%q is not a port between 0 and 65535", port)
		ip, err := netip.ParseAddr(host)
		loopback := host == "localhost" || err == nil && ip.IsLoopback()
		v.check("stream_listen", loopback || c.StreamTLSCert != "",
			"%q is not loopback: what is typed and shown would cross the network in the clear; set stream_tls_cert and stream_tls_key", host)
	}
	v.check("stream_tls_key", (c.StreamTLSCert == "") == (c.StreamTLSKey == ""), "stream_tls_cert and stream_tls_key go together; one is empty")
}

func (v *validator) metrics(listen string) {
	switch {
	case listen == "":
	case strings.HasPrefix(listen, "/"):
		v.path("metrics_listen", listen)
		v.check("metrics_listen", len(listen) < 108, "is %d bytes long; a socket's path has at most 107", len(listen))
	default:
		a, err := netip.ParseAddrPort(listen)
		v.check("metrics_listen", err == nil, "%q is neither an absolute path nor address:port", listen)
		v.check("metrics_listen", err != nil || a.Addr().IsLoopback(), "%q is not loopback: whoever can reach it would learn what runs here", listen)
	}
}

func (v *validator) sizes(c Config) {
	for _, size := range []struct {
		key       string
		value     Size
		low, high Size
	}{
		{"log_line_max", c.LogLineMax, 1 * KiB, 1 * MiB},
		{"exec_sync_output_limit", c.ExecSyncOutputLimit, 1 * KiB, 16 * MiB},
		{"writable_layer_size", c.WritableLayerSize, 0, 1 << 20 * GiB},
		{"max_layer_size", c.MaxLayerSize, 1 * MiB, 1 << 20 * GiB},
		{"max_cri_message_size", c.MaxCRIMessageSize, 4 * MiB, 1 * GiB},
	} {
		v.between(size.key, int64(size.value), int64(size.low), int64(size.high))
	}
}

func (v *validator) durations(c Config) {
	for _, d := range []struct {
		key       string
		value     Duration
		low, high time.Duration
	}{
		{"cni_timeout", c.CNITimeout, time.Second, time.Hour},
		{"nri_registration_timeout", c.NRIRegistrationTimeout, 100 * time.Millisecond, time.Minute},
		{"nri_request_timeout", c.NRIRequestTimeout, 100 * time.Millisecond, time.Minute},
		{"pull_progress_timeout", c.PullProgressTimeout, time.Second, 24 * time.Hour},
		{"image_verifier_timeout", c.ImageVerifierTimeout, time.Second, 10 * time.Minute},
		{"stream_idle_timeout", c.StreamIdleTimeout, time.Second, 7 * 24 * time.Hour},
		{"kill_timeout", c.KillTimeout, time.Second, time.Hour},
		{"drain_timeout", c.DrainTimeout, 0, time.Hour},
		{"reconcile_interval", c.ReconcileInterval, time.Second, 24 * time.Hour},
	} {
		v.check(d.key, d.low <= d.value.Duration && d.value.Duration <= d.high,
			"%v is not between %v and %v", d.value, d.low, d.high)
	}
}

func (v *validator) runtimes(all map[string]Runtime, builtin []string) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r, key := all[name], "runtimes."+name
		v.check(key, handlerPattern.MatchString(name),
			"%q is not a RuntimeClass handler (a DNS label)", name)
		v.check(key, !slices.Contains(builtin, name), "%q is in builtin_handlers too", name)
		v.path(key+".path", r.Path)
		for _, o := range r.Options {
			v.check(key+".options", strings.HasPrefix(o, "-") && !strings.ContainsRune(o, 0),
				"%q does not begin with a dash; an option with a value is --option=value", o)
		}
		v.check(key+".timeout", r.Timeout.Duration == 0 || time.Second <= r.Timeout.Duration && r.Timeout.Duration <= time.Hour,
			"%v is not between %v and %v", r.Timeout, time.Second, time.Hour)
	}
}
