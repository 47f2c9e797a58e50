package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/cri-shim/cri-shim/internal/atomicfile"
)

// record is what DEL needs. It is written before ADD, which libcni's own cache is not, so that an
// ADD that a crash cut short can be undone, and with the configuration that it was made from.
type record struct {
	PodID        string         `json:"pod_id"`
	IfName       string         `json:"if_name"`
	Netns        string         `json:"netns"`
	Config       []byte         `json:"config"` // the configuration list
	Args         [][2]string    `json:"args"`
	Capabilities map[string]any `json:"capabilities,omitempty"`
}

func (r *record) id() AttachmentID { return AttachmentID{r.PodID, r.IfName} }

func (r *record) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: r.PodID, NetNS: r.Netns, IfName: r.IfName,
		Args: r.Args, CapabilityArgs: r.Capabilities,
	}
}

const recordSuffix = ".json"

// parseRecord reads a record; numbers keep their digits.
func parseRecord(data []byte) (*record, *network, error) {
	var r record
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&r); err != nil {
		return nil, nil, err
	}
	if err := r.id().validate(); err != nil {
		return nil, nil, err
	}
	list, err := parseConf(".conflist", r.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("its configuration: %w", err)
	}
	return &r, &network{list: list}, nil
}

func (n *Networks) recordDir() string { return filepath.Join(n.cfg.CacheDir, "attachments") }

func (n *Networks) recordPath(id AttachmentID) string {
	// "@" is in no pod ID, so two attachments never share a name.
	return filepath.Join(n.recordDir(), id.PodID+"@"+id.IfName+recordSuffix)
}

// writeRecord does not sync to disk: what a power cut loses, Teardown makes up for with the current
// configuration.
func (n *Networks) writeRecord(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("attachment record: %w", err)
	}
	if err := os.MkdirAll(n.recordDir(), 0o700); err != nil {
		return fmt.Errorf("attachment record: %w", err)
	}
	if err := atomicfile.Write(n.recordPath(r.id()), data, 0o600); err != nil {
		return fmt.Errorf("attachment record: %w", err)
	}
	return nil
}

// readRecord is nil without an error when there is no record. A corrupt one is logged and counts as none.
func (n *Networks) readRecord(id AttachmentID) (*record, *network, error) {
	path := n.recordPath(id)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("attachment record: %w", err)
	}
	r, net, err := parseRecord(data)
	if err == nil && r.id() != id {
		err = fmt.Errorf("it is of pod %s %s", r.PodID, r.IfName)
	}
	if err != nil {
		n.log.Warn("corrupt attachment record", "file", path, "err", err)
		return nil, nil, nil
	}
	return r, net, nil
}

// removeRecord forgets an attachment, libcni's result included (DEL has removed it where all went well).
func (n *Networks) removeRecord(id AttachmentID, network string) error {
	if network != "" {
		cached := filepath.Join(n.cfg.CacheDir, "results", fmt.Sprintf("%s-%s-%s", network, id.PodID, id.IfName))
		if err := removeIfThere(cached); err != nil {
			return fmt.Errorf("attachment record: %w", err)
		}
	}
	if err := removeIfThere(n.recordPath(id)); err != nil {
		return fmt.Errorf("attachment record: %w", err)
	}
	return nil
}

// records are the IDs of all attachments that may hold anything.
func (n *Networks) records() ([]AttachmentID, error) {
	entries, err := os.ReadDir(n.recordDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attachment records: %w", err)
	}
	var ids []AttachmentID
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), recordSuffix)
		pod, intf, at := strings.Cut(name, "@")
		id := AttachmentID{pod, intf}
		if ok && at && id.validate() == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
