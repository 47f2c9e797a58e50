package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// maxLowers is how many lower layers overlayfs takes (its OVL_MAX_STACK).
const maxLowers = 500

// What every container has mounted over. They are in a layer of their own below the image's, for those that the image lacks: a
// runtime would else make them in the writable layer of each container, which costs a new inode and a journal entry apiece.
var (
	mountpointDirs  = []string{"dev", "etc", "proc", "sys"}
	mountpointFiles = []string{"etc/hostname", "etc/hosts", "etc/resolv.conf"}
)

func makeMountpoints(layer string) error {
	for _, name := range mountpointDirs {
		if err := os.MkdirAll(filepath.Join(layer, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range mountpointFiles {
		f, err := os.OpenFile(filepath.Join(layer, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		f.Close()
	}
	return nil
}
