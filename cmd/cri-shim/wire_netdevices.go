package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// podDevices remembers which interfaces of the node were moved into which pod, so that a container that is started anew
// gets what the one before it had. It is kept while the pod is, over restarts of the daemon.
type podDevices struct {
	dir string
	mu  sync.Mutex
}

func (d *podDevices) path(podID string) string { return filepath.Join(d.dir, podID+".json") }

// forget is for a pod whose network namespace has gone, and its interfaces with it; nil when it had none.
func (d *podDevices) forget(podID string) error {
	if err := os.Remove(d.path(podID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// podLedger is netdevice.Ledger for one pod.
type podLedger struct {
	all   *podDevices
	podID string
}

// Do implements netdevice.Ledger. Moves are rare: one after the other will do, for all pods.
func (l podLedger) Do(f func(map[string]string, func(map[string]string) error) error) error {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	path := l.all.path(l.podID)
	var known map[string]string
	if err := readJSON(path, &known); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f(known, func(next map[string]string) error {
		text, err := json.Marshal(next)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(l.all.dir, 0o700); err != nil {
			return err
		}
		if err := replaceFile(path, text); err != nil {
			return err
		}
		known = next
		return nil
	})
}
