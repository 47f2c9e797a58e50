package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// A network configuration is a few kilobytes; what is larger is not one.
const maxConfSize = 1 << 20

// network is a usable configuration.
type network struct {
	file string // "" when it comes from a record
	list *libcni.NetworkConfigList
}

// supports tells whether the configuration is of CNI version v or newer.
func (n *network) supports(v string) bool {
	ok, err := version.GreaterThanOrEqualTo(n.list.CNIVersion, v)
	return ok && err == nil
}

// Problem is a configuration file that was passed over.
type Problem struct {
	File string
	Err  error
}

func (p Problem) Error() string { return fmt.Sprintf("%s: %v", p.File, p.Err) }

// snapshot is what one reading of the configuration folder found.
type snapshot struct {
	net      *network // nil: none
	none     error    // why
	problems []Problem
	read     time.Time
}

// Problems are the configuration files that were passed over because they are invalid.
func (n *Networks) Problems() []Problem {
	return n.conf.Load().problems
}

// Loaded is the configuration in use: its file, the network's name and its plugins in order. All are empty
// when there is none.
func (n *Networks) Loaded() (file, name string, plugins []string) {
	c := n.conf.Load().net
	if c == nil {
		return "", "", nil
	}
	for _, p := range c.list.Plugins {
		plugins = append(plugins, p.Network.Type)
	}
	return c.file, c.list.Name, plugins
}

// LoadedConfig is that configuration as JSON, a list also where the file has a single plugin; nil when there is none.
func (n *Networks) LoadedConfig() []byte {
	c := n.conf.Load().net
	if c == nil {
		return nil
	}
	return c.list.Bytes
}

// maxConfAge bounds for how long a change may go unnoticed that the watcher cannot see (the target of
// a linked file, a file system without inotify).
const maxConfAge = 5 * time.Second

// current is the configuration, read again where it is old or there is none.
func (n *Networks) current() *snapshot {
	s := n.conf.Load()
	if s.net == nil || time.Since(s.read) > maxConfAge {
		s = n.reload()
	}
	return s
}

func (n *Networks) reload() *snapshot {
	n.loading.Lock()
	defer n.loading.Unlock()
	s := readConf(n.cfg.ConfDir)
	old := n.conf.Load()
	if old != nil && old.net != nil && s.net != nil && old.net.file == s.net.file &&
		bytes.Equal(old.net.list.Bytes, s.net.list.Bytes) {
		s.net = old.net // unchanged, so the cached STATUS of its plugins still counts
	}
	n.conf.Store(s)
	n.logChange(old, s)
	return s
}

func (n *Networks) logChange(old, s *snapshot) {
	known := func(p Problem) bool {
		return old != nil && slices.ContainsFunc(old.problems, func(o Problem) bool { return o.Error() == p.Error() })
	}
	for _, p := range s.problems {
		if !known(p) {
			n.log.Warn("network configuration passed over", "file", p.File, "err", p.Err)
		}
	}
	switch {
	case s.net == nil && (old == nil || old.net != nil):
		n.log.Warn("no network configuration", "err", s.none)
	case s.net != nil && (old == nil || old.net != s.net):
		n.log.Info("network configuration", "file", s.net.file, "network", s.net.list.Name)
	}
}

// readConf takes the first valid file by name among *.conflist, *.conf and *.json, as the kubelet's
// documentation of CNI has always demanded.
func readConf(dir string) *snapshot {
	s := &snapshot{read: time.Now()}
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		s.none = fmt.Errorf("no configuration folder %s", dir)
		return s
	}
	if err != nil {
		s.none = fmt.Errorf("read configuration folder: %w", err)
		return s
	}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conflist", ".conf", ".json":
		default:
			continue
		}
		file := filepath.Join(dir, e.Name())
		list, err := readConfFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errIsDir) {
			continue
		}
		if err != nil {
			s.problems = append(s.problems, Problem{File: file, Err: err})
			continue
		}
		s.net = &network{file: file, list: list}
		return s
	}
	if len(s.problems) == 0 {
		s.none = fmt.Errorf("no *.conflist, *.conf or *.json in %s", dir)
		return s
	}
	errs := make([]string, len(s.problems))
	for i, p := range s.problems {
		errs[i] = p.Error()
	}
	s.none = fmt.Errorf("no valid configuration in %s: %s", dir, strings.Join(errs, "; "))
	return s
}

var errIsDir = errors.New("a folder")

func readConfFile(file string) (*libcni.NetworkConfigList, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return nil, errIsDir
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file (%s)", fi.Mode())
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfSize+1))
	if err != nil {
		return nil, err
	}
	list, err := parseConf(filepath.Ext(file), data)
	if err != nil {
		return nil, err
	}
	return withFolderPlugins(list, filepath.Dir(file))
}

// parseConf reads a configuration list, or the configuration of one plugin where ext is not
// ".conflist", which becomes a list of one. Plugins kept in the folder of the network (CNI 1.1) are not
// part of it, so the list may be empty.
func parseConf(ext string, data []byte) (*libcni.NetworkConfigList, error) {
	if len(data) > maxConfSize {
		return nil, fmt.Errorf("larger than %d bytes", maxConfSize)
	}
	var list *libcni.NetworkConfigList
	var err error
	if ext == ".conflist" {
		list, err = libcni.NetworkConfFromBytes(data)
	} else {
		list, err = wrapPlugin(data)
	}
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return nil, fmt.Errorf("cniVersion: %w", err)
	}
	if newer {
		return nil, fmt.Errorf("cniVersion %s is newer than %s", list.CNIVersion, version.Current())
	}
	return list, nil
}

func wrapPlugin(data []byte) (*libcni.NetworkConfigList, error) {
	var probe struct {
		Type    string          `json:"type"`
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &probe); err == nil && probe.Type == "" && probe.Plugins != nil {
		return nil, errors.New(`a list ("plugins") needs the file name ending .conflist`)
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 a single plugin in a .conf is what the kubelet's users still have
	return libcni.ConfListFromConf(conf)
}

// withFolderPlugins adds the plugins from dir/NAME/*.conf (CNI 1.1) and puts them into the list's bytes
// as well, because these are what a later DEL is made from.
func withFolderPlugins(list *libcni.NetworkConfigList, dir string) (*libcni.NetworkConfigList, error) {
	if !list.LoadOnlyInlinedPlugins {
		extra, err := libcni.NetworkPluginConfsFromFiles(dir, list.Name)
		if err != nil {
			return nil, err
		}
		if len(extra) > 0 {
			if list, err = inline(list, extra); err != nil {
				return nil, err
			}
		}
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins")
	}
	for i, p := range list.Plugins {
		if strings.ContainsRune(p.Network.Type, '/') {
			return nil, fmt.Errorf("plugins[%d].type %q has a slash", i, p.Network.Type)
		}
	}
	return list, nil
}

func inline(list *libcni.NetworkConfigList, extra []*libcni.PluginConfig) (*libcni.NetworkConfigList, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &doc); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	for _, p := range slices.Concat(list.Plugins, extra) {
		plugins = append(plugins, p.Bytes)
	}
	raw, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	doc["plugins"] = raw
	doc["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}
