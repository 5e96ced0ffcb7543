package v1alpha1

import "strings"

// AnnotationReboot on a Machine, or on a Node of a cluster, with another value than before, asks for a reboot of its node; the value says why, and who asked.
// A node of a cluster is drained first, when its turn has come.
const AnnotationReboot = "coldrack.dev/reboot"

// maxRebootRequest is how much of the annotation counts.
const maxRebootRequest = 200

// RebootRequest is what the annotation says, or nothing.
func (m *Machine) RebootRequest() string { return ReadRebootRequest(m.Annotations) }

// ReadRebootRequest is what the annotation of an object says, or nothing.
func ReadRebootRequest(annotations map[string]string) string {
	request := strings.TrimSpace(annotations[AnnotationReboot])
	return strings.ToValidUTF8(request[:min(len(request), maxRebootRequest)], "")
}

// NextRebootRequest is the record of a request, of which was is the last one; bootID is the boot that runs now, where it is known. It is nil
// where nothing is asked for.
func NextRebootRequest(was *RebootStatus, request, bootID string) *RebootStatus {
	switch {
	case request == "":
		return nil
	case was != nil && was.Request == request:
		return was
	case bootID != "":
		return &RebootStatus{Request: request, BootID: bootID}
	}
	return was
}

// WantsReboot says why the machine's node is to be rebooted, and whether a person asked for it. It is empty when there is nothing to do.
func (m *Machine) WantsReboot() (why string, asked bool) {
	node, reboot := m.Status.Node, m.Status.Reboot
	switch {
	case node == nil || m.Status.Installed == nil:
		return "", false
	case reboot != nil && reboot.Request == m.RebootRequest() && reboot.BootID == node.BootID:
		return "asked for " + reboot.Request, true
	case node.RebootRequired != "":
		return "required by " + node.RebootRequired, false
	}
	return "", false
}
