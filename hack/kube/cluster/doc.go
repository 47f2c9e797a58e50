// Package cluster starts a Kubernetes of one node on the daemon: etcd, API server, controllers, scheduler, kube-proxy,
// kubelet and CoreDNS, in the network namespace, mounts and control groups that hack/isolate.sh gave it. Its tests
// are those of the cluster; hack/kube/cluster.sh runs it for a person.
package cluster
