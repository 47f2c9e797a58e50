package e2e

import (
	"syscall"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stopSignal is how the service manager ends the daemon.
const stopSignal = syscall.SIGTERM

// asApp runs a container as the user app.
func asApp(c *pb.ContainerConfig) {
	c.Linux.SecurityContext.RunAsUser = &pb.Int64Value{Value: 1000}
}
