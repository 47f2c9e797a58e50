// Package cri is the gRPC face of the runtime: RuntimeService and ImageService of
// the CRI (k8s.io/cri-api, runtime.v1) and a small administration service on the
// same socket. A handler decodes and validates a request into plain domain types,
// makes one call and encodes the answer; it returns plain Go errors, which one
// table turns into status codes.
package cri
