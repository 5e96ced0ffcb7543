package members

import (
	"reflect"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// TestWhatARestoreWantsOfNodes: no member gets data before everything has stopped, nor after the restore has ended.
func TestWhatARestoreWantsOfNodes(t *testing.T) {
	data := &wire.Content{Digest: "sha256:1", Size: 7}
	for what, test := range map[string]struct {
		step   v1alpha1.RestoreStep
		former bool
		etcd   *wire.EtcdRestore
		worker *wire.EtcdRestore
	}{
		"none":                           {"", false, nil, nil},
		"everything stops":               {v1alpha1.RestoreStopping, false, &wire.EtcdRestore{ID: "r", Stop: true}, &wire.EtcdRestore{ID: "r", Stop: true}},
		"and stays so":                   {v1alpha1.RestorePreparing, false, &wire.EtcdRestore{ID: "r", Stop: true}, &wire.EtcdRestore{ID: "r", Stop: true}},
		"a member takes its data":        {v1alpha1.RestoreStarting, false, &wire.EtcdRestore{ID: "r", Data: data}, &wire.EtcdRestore{ID: "r"}},
		"what was there before is kept":  {v1alpha1.RestoreDone, true, &wire.EtcdRestore{ID: "r"}, &wire.EtcdRestore{ID: "r"}},
		"until a backup has succeeded":   {v1alpha1.RestoreDone, false, nil, nil},
		"one that was refused":           {v1alpha1.RestoreRefused, false, nil, nil},
		"one after another, and refused": {v1alpha1.RestoreRefused, true, &wire.EtcdRestore{ID: "r"}, &wire.EtcdRestore{ID: "r"}},
	} {
		c := &v1alpha1.Cluster{}
		c.Status.Nodes = []v1alpha1.ClusterNode{{Machine: "etcd-1", Etcd: &v1alpha1.EtcdMember{}}, {Machine: "worker-1"}}
		if test.step != "" {
			c.Status.Restore = &v1alpha1.RestoreStatus{ID: "r", Step: test.step, FormerData: test.former, Members: []v1alpha1.RestoreMember{{Machine: "etcd-1", Digest: data.Digest, Size: data.Size}}}
		}
		all := restoresOf(c)
		if !reflect.DeepEqual(all["etcd-1"], test.etcd) || !reflect.DeepEqual(all["worker-1"], test.worker) {
			t.Errorf("%s: etcd %+v, worker %+v", what, all["etcd-1"], all["worker-1"])
		}
	}
}
