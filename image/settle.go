package image

import (
	"errors"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// A pull does not wait for the disk: on a busy one, that is most of the time. Until all that an image is made of has
// been written back, its record bears the kernel's boot ID. If the machine goes down before that, the record's ID is
// another's at the next start, or the record is not there or empty, and the image has to be pulled again; if only the
// daemon does, nothing is lost, and the next one settles the image.

// errUnwritten: a record has its place and no content, as a crash of the machine leaves what was not written back.
var errUnwritten = errors.New("record is empty")

// settleLater waits for the disk, off everybody's way. root must have been opened before anything of the image was
// written, since errors of writing back are reported to those descriptors; it is closed.
func (s *Store) settleLater(root *os.File, id digest.Digest, landing *int) {
	s.work.Go(func() {
		defer root.Close()
		if err := s.settle(id, landing, sys.Syncfs(root)); err != nil {
			s.log.Error("settle image", "id", id, "err", err)
		}
	})
}

// settleAgain goes on where an earlier daemon was interrupted.
func (s *Store) settleAgain(r *record) {
	if r.Boot == "" {
		return
	}
	root, err := os.Open(s.cfg.Root)
	if err != nil {
		s.log.Error("settle image", "id", r.ID, "err", err)
		return
	}
	s.settleLater(root, r.ID, r.landing)
}

// settle makes an image permanent, or, if it could not be written, removes it.
func (s *Store) settle(id digest.Digest, landing *int, synced error) error {
	s.change.Lock()
	defer s.change.Unlock()
	r := s.record(id)
	if r == nil || r.landing != landing {
		return nil // removed meanwhile, and perhaps there again
	}
	r = r.clone()
	if synced != nil {
		return errors.Join(synced, s.removeRecord(r))
	}
	r.Boot, r.landing = "", nil
	if err := writeRecord(s.imageDir(id), r); err != nil {
		return err
	}
	s.layers.setSynced(r.layerIDs())
	s.publish(r)
	return nil
}
