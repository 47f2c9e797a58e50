package selinux

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"sync"
)

// categories is how many there are in the targeted policy (c0 to c1023).
const categories = 1024

// ErrExhausted says that every pair of categories is some pod's.
var ErrExhausted = errors.New("no SELinux categories are left")

// Levels gives each pod a pair of categories that no other has: a process that escapes from a container of
// container_t then still cannot touch another pod's files (multi-category security). It is safe for concurrent use.
type Levels struct {
	categories int64

	mu    sync.Mutex
	pods  map[string]string // by pod
	taken map[string]int    // how many pods have a level
}

// NewLevels has no pods.
func NewLevels() *Levels {
	return &Levels{categories: categories, pods: map[string]string{}, taken: map[string]int{}}
}

// Take returns the pod's level, the same at each call until Release.
func (l *Levels) Take(pod string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level := l.pods[pod]; level != "" {
		return level, nil
	}
	level, err := l.free()
	if err != nil {
		return "", err
	}
	l.keep(pod, level)
	return level, nil
}

// Keep notes a level that a pod has already: on record, or from its client.
func (l *Levels) Keep(pod, level string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pods[pod] == "" && level != "" {
		l.keep(pod, level)
	}
}

func (l *Levels) keep(pod, level string) {
	l.pods[pod] = level
	l.taken[level]++
}

// Release gives a pod's level back.
func (l *Levels) Release(pod string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	level := l.pods[pod]
	delete(l.pods, pod)
	if l.taken[level]--; l.taken[level] <= 0 {
		delete(l.taken, level)
	}
}

// pairs is how many levels there are with two different categories.
func (l *Levels) pairs() int64 { return l.categories * (l.categories - 1) / 2 }

// free looks from a random pair on, so that a level tells nothing of the order of pods and is not used again soon.
func (l *Levels) free() (string, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(l.pairs()))
	if err != nil {
		return "", err
	}
	for i := range l.pairs() {
		if level := pair((n.Int64() + i) % l.pairs()); l.taken[level] == 0 {
			return level, nil
		}
	}
	return "", ErrExhausted
}

// pair is the n-th level. The policy wants the lower category first.
func pair(n int64) string {
	high := int64(1)
	for n >= high {
		n -= high
		high++
	}
	return fmt.Sprintf("s0:c%d,c%d", n, high)
}
