package image

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// stamps are files, and folders, on which a decision rests, each with what changes when it does. An empty one rests on
// nothing that is known.
type stamps map[string]string

// stampOf is what changes when a file is written or replaced. The change time cannot be set back.
func stampOf(fi os.FileInfo) string {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return "none"
	}
	return fmt.Sprintf("%d %d %d %d %d", st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}

func stampAt(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return "none"
	}
	return stampOf(fi)
}

// clockGrain is more than the grain of the time that the kernel gives to files.
const clockGrain = 20 * time.Millisecond

// stampsOf are those of paths, or nil if one of them may have changed since start: what was decided then cannot be said
// to rest on what is there now.
func stampsOf(paths []string, start time.Time) stamps {
	s := stamps{}
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			s[p] = "none"
			continue
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || time.Unix(0, st.Ctim.Nano()).After(start.Add(-clockGrain)) {
			return nil
		}
		s[p] = stampOf(fi)
	}
	return s
}

// hold tells whether everything is as it was, and whether the files that are configured now are among it.
func (s stamps) hold(configured ...string) bool {
	for _, p := range configured {
		if _, ok := s[p]; !ok {
			return false
		}
	}
	for p, was := range s {
		if stampAt(p) != was {
			return false
		}
	}
	return len(s) > 0
}
