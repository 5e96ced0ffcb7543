package v1alpha1

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Addon is a folder of manifests that the server applies to a cluster and keeps there. Only administrators may write one: its objects are
// made with all rights in the cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=coldrack
// +kubebuilder:printcolumn:name="Cluster",type=string,JSONPath=`.spec.cluster`
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Healthy",type=string,JSONPath=`.status.healthy`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="the name is a label of the add-on's objects, and has 63 characters at most"
type Addon struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AddonSpec   `json:"spec"`
	Status AddonStatus `json:"status,omitempty"`
}

// AddonList is a list of Addons.
//
// +kubebuilder:object:root=true
type AddonList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Addon `json:"items"`
}

// DriftPolicy says what is done about objects that somebody has changed in the cluster.
// +kubebuilder:validation:Enum=Restore;Report
type DriftPolicy string

const (
	// DriftRestore changes them back within a minute.
	DriftRestore DriftPolicy = "Restore"
	// DriftReport only says so.
	DriftReport DriftPolicy = "Report"
)

// AddonSpec is what a person wants of an add-on.
//
// +kubebuilder:validation:XValidation:rule="self.cluster == oldSelf.cluster",message="cluster cannot be changed: delete the add-on, and make one of another name"
type AddonSpec struct {
	// Cluster that gets the objects.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Cluster string `json:"cluster"`
	// Version as a person calls it, for example that of the program. It decides nothing.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Version string `json:"version,omitempty"`
	// Order among the cluster's add-ons: those of a lower order are healthy before the objects of this one are applied for the first time.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Order int32 `json:"order,omitempty"`
	// Namespace of objects that name none. Default: default.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// WhenChanged says what is done about objects that somebody has changed in the cluster.
	// +optional
	// +kubebuilder:default=Restore
	WhenChanged DriftPolicy `json:"whenChanged,omitempty"`
	// TakeOver lets the add-on have objects that are in the cluster already with other content, of whomever they are.
	// +optional
	TakeOver bool `json:"takeOver,omitempty"`
	// RemoveData also removes Namespaces, definitions of kinds, volumes and claims that the add-on has no more, and with them what others have
	// put there.
	// +optional
	RemoveData bool `json:"removeData,omitempty"`
	// Timeout after which objects that are not healthy make the add-on fail. It is tried further all the same. Default 10m.
	// +optional
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// Files are the manifests, in the order in which they are read.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=512
	Files []AddonFile `json:"files"`
}

// AddonFile is one file of manifests.
type AddonFile struct {
	// Name that messages call it by, with its folders.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Content is YAML or JSON.
	// +optional
	Content string `json:"content,omitempty"`
	// Gzip is the content packed by gzip, in base64, where it is too large to be stored as it is.
	// +optional
	Gzip string `json:"gzip,omitempty"`
}

// AddonStatus is what is known of an add-on in its cluster.
type AddonStatus struct {
	// Phase is Waiting, Applying, Settling, Ready, Drifted, Failed or Removing.
	// +optional
	Phase string `json:"phase,omitempty"`
	// Message for a person: what is missing, which object, why.
	// +optional
	Message string `json:"message,omitempty"`
	// Healthy is "healthy/all" objects.
	// +optional
	Healthy string `json:"healthy,omitempty"`
	// Applied stands for what was applied last, whole and without an error.
	// +optional
	Applied string `json:"applied,omitempty"`
	// AppliedAt is when that was applied for the first time.
	// +optional
	AppliedAt *metav1.Time `json:"appliedAt,omitempty"`
	// MissingImages are in no bundle of the server, and no registry of the cluster may have them.
	// +optional
	// +listType=set
	MissingImages []string `json:"missingImages,omitempty"`
	// Left are objects that the add-on has no more and that stay in the cluster, each with the reason.
	// +optional
	// +listType=atomic
	Left []string `json:"left,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterAddon is an add-on in its cluster's status.
type ClusterAddon struct {
	Name string `json:"name"`
	// Version: for what every cluster has, that of its image or of Kubernetes; else what a person calls it.
	// +optional
	Version string `json:"version,omitempty"`
	// +optional
	Ready bool `json:"ready,omitempty"`
	// Message says what is missing.
	// +optional
	Message string `json:"message,omitempty"`
	// Applied stands for what was applied last.
	// +optional
	Applied string `json:"applied,omitempty"`
}

const (
	// ConditionAddonsReady of a Cluster: all of its add-ons are healthy.
	ConditionAddonsReady = "AddonsReady"
	// AddonFinalizer keeps a deleted Addon until its objects have left the cluster.
	AddonFinalizer = "coldrack.dev/addon"
	// AnnotationLeaveObjects with value "true" on an Addon leaves its objects in the cluster when the Addon is deleted.
	AnnotationLeaveObjects = "coldrack.dev/leave-objects"
	// DefaultAddonTimeout is that of an Addon which says none.
	DefaultAddonTimeout = 10 * time.Minute
	// MaxAddonText is how many bytes of files are stored as they are. The store takes a megabyte and a half for one object, and a patch holds it twice.
	MaxAddonText = 256 << 10
	// maxAddonFiles is how many bytes of files there may be once they are unpacked, maxAddonStored how many are stored.
	maxAddonFiles  = 16 << 20
	maxAddonStored = 640 << 10
)

// OwnAddons are the names of what every cluster may have of Coldrack.
func OwnAddons() []string {
	return []string{"bootstrap", "kube-proxy", "flannel", "coredns", "loadbalancer"}
}

// Text is the file's content.
func (f *AddonFile) Text() (string, error) {
	if f.Gzip == "" {
		return f.Content, nil
	}
	if f.Content != "" {
		return "", fmt.Errorf("file %s has content and gzip; one of them is possible", f.Name)
	}
	packed, err := base64.StdEncoding.DecodeString(f.Gzip)
	if err != nil {
		return "", fmt.Errorf("file %s: gzip is no base64: %w", f.Name, err)
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return "", fmt.Errorf("file %s: gzip: %w", f.Name, err)
	}
	text, err := io.ReadAll(io.LimitReader(unpacked, maxAddonFiles+1))
	if err != nil {
		return "", fmt.Errorf("file %s: gzip: %w", f.Name, err)
	}
	if len(text) > maxAddonFiles {
		return "", fmt.Errorf("file %s has more than %d bytes", f.Name, maxAddonFiles)
	}
	return string(text), nil
}

// PackedAddonFile is a file whose content is stored packed.
func PackedAddonFile(name, text string) AddonFile {
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	_, _ = writer.Write([]byte(text)) // a buffer takes everything
	_ = writer.Close()
	return AddonFile{Name: name, Gzip: base64.StdEncoding.EncodeToString(packed.Bytes())}
}

// WaitsFor is how long its objects may take to become healthy.
func (a *Addon) WaitsFor() time.Duration {
	if a.Spec.Timeout == nil {
		return DefaultAddonTimeout
	}
	return a.Spec.Timeout.Duration
}

// ValidateAddon says what is wrong with an add-on, apart from the objects in its files.
func ValidateAddon(a *Addon) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if slices.Contains(OwnAddons(), a.Name) {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), a.Name, "is the name of an add-on of Coldrack's own; take another one"))
	}
	if a.Spec.Timeout != nil && a.Spec.Timeout.Duration <= 0 {
		errs = append(errs, field.Invalid(spec.Child("timeout"), a.Spec.Timeout.Duration.String(), "must be more than nothing, for example 10m"))
	}
	stored, all := 0, 0
	for i := range a.Spec.Files {
		f := &a.Spec.Files[i]
		text, err := f.Text()
		if err != nil {
			errs = append(errs, field.Invalid(spec.Child("files").Index(i), f.Name, err.Error()))
		}
		stored, all = stored+len(f.Content)+len(f.Gzip), all+len(text)
		if all > maxAddonFiles {
			errs = append(errs, field.Invalid(spec.Child("files"), f.Name, fmt.Sprintf("all files have more than %d bytes: make several add-ons of them", maxAddonFiles)))
			break
		}
	}
	if stored > maxAddonStored {
		errs = append(errs, field.Invalid(spec.Child("files"), fmt.Sprintf("%d bytes", stored),
			fmt.Sprintf("at most %d can be stored: pack the files (coldrack addon apply does), or make several add-ons of them", maxAddonStored)))
	}
	return errs
}

// TargetNamespace is that of objects which name none.
func (a *Addon) TargetNamespace() string {
	if a.Spec.Namespace == "" {
		return "default"
	}
	return a.Spec.Namespace
}

// AddonTypeMeta names the kind in an object that is sent as it is.
func AddonTypeMeta() metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: GroupVersion.String(), Kind: "Addon"}
}
