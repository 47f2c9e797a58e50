package main

import (
	"context"
	"fmt"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ofLists is the table of what is asked for while the idle pods are there, in place of a network's name.
const ofLists = "lists"

// listRounds is how often each list is asked for; the first one warms up and does not count.
const listRounds = 10

// measureLists times the lists that the kubelet polls.
func (t *target) measureLists(ctx context.Context, pods int) error {
	for _, list := range []struct {
		name string
		call func() (int, error)
	}{
		{"ListPodSandbox", func() (int, error) {
			r, err := t.runtime.ListPodSandbox(ctx, &pb.ListPodSandboxRequest{})
			return len(r.GetItems()), err
		}},
		{"ListContainers", func() (int, error) {
			r, err := t.runtime.ListContainers(ctx, &pb.ListContainersRequest{})
			return len(r.GetContainers()), err
		}},
		{"ListPodSandboxStats", func() (int, error) {
			r, err := t.runtime.ListPodSandboxStats(ctx, &pb.ListPodSandboxStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListContainerStats", func() (int, error) {
			r, err := t.runtime.ListContainerStats(ctx, &pb.ListContainerStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListPodSandboxMetrics", func() (int, error) {
			r, err := t.runtime.ListPodSandboxMetrics(ctx, &pb.ListPodSandboxMetricsRequest{})
			return len(r.GetPodMetrics()), err
		}},
	} {
		for i := range listRounds + 1 {
			begin := time.Now()
			n, err := list.call()
			if err != nil {
				return fmt.Errorf("%s: %w", list.name, err)
			}
			if n < pods {
				return fmt.Errorf("%s: %d items with %d pods", list.name, n, pods)
			}
			if i > 0 {
				t.results.add(ofLists, list.name, time.Since(begin))
			}
		}
	}
	return nil
}
