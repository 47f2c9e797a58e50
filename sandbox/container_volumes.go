package sandbox

import (
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/continuity/fs"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// fillVolumes copies what an image has at its VOLUME paths into the container's own volumes, with owners and
// modes, as containerd and Docker do. volumes maps paths in the container to folders.
func fillVolumes(root *os.File, volumes map[string]string) error {
	for path, dir := range volumes {
		if err := fillVolume(root, path, dir); err != nil {
			return fmt.Errorf("image volume %s: %w", path, err)
		}
	}
	return nil
}

func fillVolume(root *os.File, path, dir string) error {
	fd, err := sys.OpenInRoot(int(root.Fd()), path, os.O_RDONLY|sys.OpenDirectory, 0)
	if os.IsNotExist(err) {
		return nil // the image leaves it to the runtime to make it
	}
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(fd), path)
	defer from.Close()
	return fs.CopyDir(dir, "/proc/self/fd/"+strconv.Itoa(fd))
}
