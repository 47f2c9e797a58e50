package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/intel/goresctrl/pkg/kubernetes"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/payload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// classes are those of cache and memory bandwidth (RDT) and of block I/O that a pod's annotations choose.
type classes struct {
	rdt     []string // nil: none are configured, any that exists will do
	blockio map[string]*specs.LinuxBlockIO
}

// rdtRoot is the class of whoever has none (goresctrl's rdt.RootClassName).
const rdtRoot = "system/default"

// The annotations are goresctrl's, which containerd and CRI-O have too.
const (
	rdtContainer     = "io.kubernetes.cri.rdt-class"
	rdtPod           = "rdt.resources.beta.kubernetes.io/pod"
	rdtPrefix        = "rdt.resources.beta.kubernetes.io/container."
	blockioContainer = "io.kubernetes.cri.blockio-class"
	blockioPod       = "blockio.resources.beta.kubernetes.io/pod"
	blockioPrefix    = "blockio.resources.beta.kubernetes.io/container."
)

// newClasses makes the classes that are configured; without any it does nothing.
func newClasses(cfg *config.Config) (c classes, err error) {
	if cfg.RDTConfigFile != "" {
		c.rdt = []string{}
		if err := readClasses(cfg.State, "rdt", cfg.RDTConfigFile, &c.rdt); err != nil {
			return c, fmt.Errorf("rdt_config_file: %w", err)
		}
	}
	if cfg.BlockioConfigFile != "" {
		if err := readClasses(cfg.State, "blockio", cfg.BlockioConfigFile, &c.blockio); err != nil {
			return c, fmt.Errorf("blockio_config_file: %w", err)
		}
	}
	return c, nil
}

func readClasses(state, what, file string, to any) error {
	program, err := payload.Classes(state)
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/fd/3", what, file)
	cmd.ExtraFiles = append(cmd.ExtraFiles, program)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return errors.New(string(bytes.TrimSpace(exit.Stderr)))
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(out, to)
}

func (k classes) apply(spec *specs.Spec, p *sandbox.Pod, c *sandbox.Container) error {
	name, container, pod := c.Config.Metadata.Name, c.Config.Annotations, p.Config.Annotations
	if class, from := kubernetes.ContainerClassFromAnnotations(rdtContainer, rdtPod, rdtPrefix, name, container, pod); class != "" {
		id := class
		switch {
		case class == rdtRoot:
			id = "/"
		case strings.Contains(class, "/"):
			return fmt.Errorf("%w: %s: %q is not the name of an RDT class", sandbox.ErrInvalid, from, class)
		case k.rdt != nil && !slices.Contains(k.rdt, class):
			return fmt.Errorf("%w: %s: no RDT class %q in rdt_config_file", sandbox.ErrInvalid, from, class)
		}
		spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: id}
	}
	class, from := kubernetes.ContainerClassFromAnnotations(blockioContainer, blockioPod, blockioPrefix, name, container, pod)
	if class == "" {
		return nil
	}
	limits, ok := k.blockio[class]
	switch {
	case k.blockio == nil:
		return fmt.Errorf("%w: %s: block I/O class %q, but blockio_config_file is not set", sandbox.ErrInvalid, from, class)
	case !ok:
		return fmt.Errorf("%w: %s: no block I/O class %q in blockio_config_file", sandbox.ErrInvalid, from, class)
	}
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	spec.Linux.Resources.BlockIO = limits
	return nil
}
