package e2e

import (
	"errors"
	"io"
	"slices"
	"testing"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// streamed reads a stream to its end and returns the names of what it brought, and whether each was there once.
func streamed[M, T any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T, id func(T) string) []string {
	t.Helper()
	var all []string
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err == nil {
			for _, item := range items(m) {
				all = append(all, id(item))
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	slices.Sort(all)
	if len(all) == 0 || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("streamed %q; want some, each once", all)
	}
	return all
}

// names are the sorted names of what a list has.
func names[T any](items []T, id func(T) string) (all []string) {
	for _, item := range items {
		all = append(all, id(item))
	}
	slices.Sort(all)
	return all
}

// TestStreamedLists: each of the six streams brings what the list does, on a daemon that is the test's own.
func TestStreamedLists(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	for range 3 {
		n.runPod(t).sleeping(t)
	}
	c := ctx(t)
	check := func(what string, got, want []string, err error) {
		t.Helper()
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: streamed %v; the list has %v, %v", what, got, want, err)
		}
	}
	{
		list, err := n.ListPodSandbox(c, &pb.ListPodSandboxRequest{})
		stream, failed := n.StreamPodSandboxes(c, &pb.StreamPodSandboxesRequest{})
		id := func(p *pb.PodSandbox) string { return p.Id }
		check("pods", streamed(t, stream, failed, (*pb.StreamPodSandboxesResponse).GetPodSandboxes, id), names(list.GetItems(), id), err)
	}
	{
		list, err := n.ListContainers(c, &pb.ListContainersRequest{})
		stream, failed := n.StreamContainers(c, &pb.StreamContainersRequest{})
		id := func(c *pb.Container) string { return c.Id }
		check("containers", streamed(t, stream, failed, (*pb.StreamContainersResponse).GetContainers, id), names(list.GetContainers(), id), err)
	}
	{
		list, err := n.ListContainerStats(c, &pb.ListContainerStatsRequest{})
		stream, failed := n.StreamContainerStats(c, &pb.StreamContainerStatsRequest{})
		id := func(s *pb.ContainerStats) string { return s.Attributes.Id }
		check("container stats", streamed(t, stream, failed, (*pb.StreamContainerStatsResponse).GetContainerStats, id), names(list.GetStats(), id), err)
	}
	{
		list, err := n.ListPodSandboxStats(c, &pb.ListPodSandboxStatsRequest{})
		stream, failed := n.StreamPodSandboxStats(c, &pb.StreamPodSandboxStatsRequest{})
		id := func(s *pb.PodSandboxStats) string { return s.Attributes.Id }
		check("pod stats", streamed(t, stream, failed, (*pb.StreamPodSandboxStatsResponse).GetPodSandboxStats, id), names(list.GetStats(), id), err)
	}
	{
		list, err := n.ListPodSandboxMetrics(c, &pb.ListPodSandboxMetricsRequest{})
		stream, failed := n.StreamPodSandboxMetrics(c, &pb.StreamPodSandboxMetricsRequest{})
		id := func(m *pb.PodSandboxMetrics) string { return m.PodSandboxId }
		check("metrics", streamed(t, stream, failed, (*pb.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, id), names(list.GetPodMetrics(), id), err)
	}
	{
		list, err := n.ListImages(c, &pb.ListImagesRequest{})
		stream, failed := n.StreamImages(c, &pb.StreamImagesRequest{})
		id := func(i *pb.Image) string { return i.Id }
		check("images", streamed(t, stream, failed, (*pb.StreamImagesResponse).GetImages, id), names(list.GetImages(), id), err)
	}
}
