// Package kubelet has the tests that run an unmodified kubelet, without a cluster, on the daemon: static pods, looked at
// through the kubelet's own API. hack/kube/test-kubelet.sh builds the parts and gives the tests a machine of
// their own.
package kubelet
