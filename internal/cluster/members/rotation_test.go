package members

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/contract/wire"
)

// believer is what a node has of a cluster in a stage.
type believer struct {
	stage v1alpha1.RotationStage
	plan  *wire.NodePlan
	m     *Material
	leaf  *x509.Certificate // of one certificate that the authority signs
}

// accepts says whether a node in stage b accepts what one in stage a makes.
func (b believer) accepts(t *testing.T, a believer, key v1alpha1.RotatedKey) bool {
	t.Helper()
	switch key {
	case v1alpha1.RotateServiceAccount:
		private, err := parseKey(a.m.serviceAccountKey)
		check(t, err)
		public, err := encodePublicKey(private.Public())
		check(t, err)
		return bytes.Contains(b.file(t, "/etc/kubernetes/pki/sa.pub"), public)
	case v1alpha1.RotateEncryption:
		return bytes.Contains(b.file(t, "/etc/kubernetes/apiserver/encryption.yaml"), []byte(a.m.encryption[0].Secret))
	}
	at := map[v1alpha1.RotatedKey]string{v1alpha1.RotateCA: "ca.crt", v1alpha1.RotateEtcdCA: "etcd/ca.crt", v1alpha1.RotateFrontProxyCA: "front-proxy-ca.crt"}[key]
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b.file(t, "/etc/kubernetes/pki/"+at))
	_, err := a.leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

func (b believer) file(t *testing.T, path string) []byte {
	t.Helper()
	i := slices.IndexFunc(b.plan.Files, func(f wire.NodeFile) bool { return f.Path == path })
	if i < 0 {
		t.Fatalf("there is no %s", path)
	}
	return b.plan.Files[i].Content
}

// Nodes of two neighbouring stages accept what the other makes, whichever way a rotation goes; at its end nothing of the key that went
// is accepted. Where they differ, their digests do, so that they are rolled.
func TestNeighbouringStagesWorkTogether(t *testing.T) {
	forth := []v1alpha1.RotationStage{"", v1alpha1.RotationAccept, v1alpha1.RotationSwap, v1alpha1.RotationDrop, v1alpha1.RotationDone}
	published := slices.Insert(slices.Clone(forth), 2, v1alpha1.RotationPublish)
	back := []v1alpha1.RotationStage{"", v1alpha1.RotationAccept, v1alpha1.RotationSwap, v1alpha1.RotationReturn, v1alpha1.RotationUndo, v1alpha1.RotationTakenBack}
	soon := []v1alpha1.RotationStage{"", v1alpha1.RotationAccept, v1alpha1.RotationUndo, v1alpha1.RotationTakenBack}
	for _, key := range v1alpha1.RotatedKeys() {
		for name, way := range map[string][]v1alpha1.RotationStage{"to its end": forth, "with pods": published, "and back": back, "and back at once": soon} {
			t.Run(string(key)+" "+name, func(t *testing.T) {
				var walked []believer
				r := record(t, rack(t, "a", v1alpha1.TopologyProduction, 1))
				set := newSet()
				set.Put(r)
				for _, stage := range way {
					if stage != "" {
						r = r.at(t, key, stage)
						set.Put(r)
					}
					walked = append(walked, seen(t, set, r, key))
				}
				for i := range walked {
					if i == 0 {
						continue
					}
					a, b := walked[i-1], walked[i]
					if !a.accepts(t, b, key) || !b.accepts(t, a, key) {
						t.Errorf("nodes in stage %q and stage %q do not accept each other's", a.stage, b.stage)
					}
					same := b.stage.Ended() || b.stage == v1alpha1.RotationPublish
					if (a.plan.Digests == b.plan.Digests) != same {
						t.Errorf("from %q to %q the digests go from %+v to %+v", a.stage, b.stage, a.plan.Digests, b.plan.Digests)
					}
				}
				first, last := walked[0], walked[len(walked)-1]
				if renewed := last.stage == v1alpha1.RotationDone; last.accepts(t, first, key) == renewed || first.accepts(t, last, key) == renewed {
					t.Error("at the end, it is not another key")
				}
				if last.stage == v1alpha1.RotationTakenBack && last.plan.Digests != first.plan.Digests {
					t.Error("taken back, nodes are otherwise than before")
				}
				// What the Secret holds then is the same without the record.
				secret := r.Secret.DeepCopy()
				FinishRotation(secret, r.Cluster.Status.Rotation)
				for name := range secret.Data {
					if strings.HasPrefix(name, nextPrefix) || name == fileRotation {
						t.Errorf("the Secret has %s left", name)
					}
				}
				if FinishRotation(secret, r.Cluster.Status.Rotation) {
					t.Error("it is finished twice")
				}
				for _, status := range []*v1alpha1.RotationStatus{r.Cluster.Status.Rotation, nil} {
					m, err := ParseMaterial(secret, status)
					check(t, err)
					if got, want := picture(m), picture(last.m); got != want {
						t.Errorf("without the other key it is\n%s\nand with it\n%s", got, want)
					}
				}
			})
		}
	}
}

// picture is all of a material.
func picture(m *Material) string {
	b, _ := json.Marshal([]any{m.trusted, m.authorityNumber, m.serviceAccountKey, m.serviceAccountPublic, m.encryption,
		fingerprint(m.authorities[kube.AuthorityKubernetes]), fingerprint(m.authorities[kube.AuthorityEtcd]), fingerprint(m.authorities[kube.AuthorityFrontProxy])})
	return string(b)
}

// at is the record in a stage, as the leader writes it.
func (r Record) at(t *testing.T, key v1alpha1.RotatedKey, stage v1alpha1.RotationStage) Record {
	t.Helper()
	r.Cluster, r.Secret = r.Cluster.DeepCopy(), r.Secret.DeepCopy()
	_, err := PrepareRotation(r.Secret, r.Cluster, &v1alpha1.ClusterRotation{Key: key, ID: "1"}, time.Now())
	check(t, err)
	r.Cluster.Status.Rotation = &v1alpha1.RotationStatus{Key: key, ID: "1", Stage: stage}
	return r
}

// seen is what a control plane has now.
func seen(t *testing.T, set *Set, r Record, key v1alpha1.RotatedKey) believer {
	t.Helper()
	i := slices.IndexFunc(r.Cluster.Status.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Group == "a-control" })
	machine := r.Cluster.Status.Nodes[i].Machine
	a, _ := set.Node(machine)
	if a.Plan == nil {
		t.Fatal(a.Message)
	}
	m, err := ParseMaterial(r.Secret, r.Cluster.Status.Rotation)
	check(t, err)
	b := believer{plan: a.Plan, m: m}
	if is := r.Cluster.Status.Rotation; is != nil {
		b.stage = is.Stage
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	name := map[v1alpha1.RotatedKey]string{v1alpha1.RotateEtcdCA: "apiserver-etcd-client", v1alpha1.RotateFrontProxyCA: "front-proxy-client"}[key]
	if name == "" {
		name = "apiserver"
	}
	_, b.leaf, err = set.Sign(machine, "a", name, private.Public())
	check(t, err)
	planned := a.Plan.Certificates[slices.IndexFunc(a.Plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == name })]
	issuer := x509.NewCertPool()
	issuer.AppendCertsFromPEM([]byte(planned.Authority))
	if _, err := b.leaf.Verify(x509.VerifyOptions{Roots: issuer, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("in stage %q a node would refuse what it is sent: %v", b.stage, err)
	}
	return b
}

// A record whose keys are not there leaves nodes what they have, all of it.
func TestAStageComesWithItsKeys(t *testing.T) {
	r := record(t, rack(t, "a", v1alpha1.TopologyProduction, 1))
	set := newSet()
	set.Put(r)
	before := seen(t, set, r, v1alpha1.RotateCA)
	early := r.at(t, v1alpha1.RotateCA, v1alpha1.RotationAccept)
	late := early
	early.Secret = r.Secret
	set.Put(early)
	if view, _, _ := set.View("a"); view.Rotation != "" || !strings.Contains(view.Problem, "the key of rotation 1 is not in Secret cluster-a") {
		t.Errorf("%q: %s", view.Rotation, view.Problem)
	}
	machine := slices.IndexFunc(r.Cluster.Status.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Group == "a-control" })
	if a, _ := set.Node(r.Cluster.Status.Nodes[machine].Machine); a.Plan == nil || a.Plan.Digests != before.plan.Digests {
		t.Errorf("it is given %+v", a)
	}
	set.Put(late)
	if view, _, _ := set.View("a"); view.Rotation != "1 Accept" || view.Problem != "" {
		t.Errorf("%q: %s", view.Rotation, view.Problem)
	}
	unknown := r.at(t, v1alpha1.RotateCA, "Sideways")
	set.Put(unknown)
	if view, _, _ := set.View("a"); view.Rotation != "1 Accept" || !strings.Contains(view.Problem, "a newer one began it") {
		t.Errorf("%q: %s", view.Rotation, view.Problem)
	}
}

// One that is begun after another one has names of its own, and takes up nothing of the one before.
func TestARotationAfterAnother(t *testing.T) {
	r := record(t, rack(t, "a", v1alpha1.TopologyProduction, 1))
	for i, want := range []string{"coldrack-2", "coldrack-3"} {
		wanted := &v1alpha1.ClusterRotation{Key: v1alpha1.RotateEncryption, ID: string(rune('a' + i))}
		before := r.Cluster.Status.Rotation
		changed, err := PrepareRotation(r.Secret, r.Cluster, wanted, time.Now())
		if check(t, err); !changed {
			t.Error("no key was made")
		}
		if again, err := PrepareRotation(r.Secret, r.Cluster, wanted, time.Now()); again || err != nil {
			t.Errorf("a second one was made: %v", err)
		}
		// A server that dies here has the record of the one before.
		m, err := ParseMaterial(r.Secret, before)
		if check(t, err); len(m.encryption) != 1 || m.encryption[0].Name == want {
			t.Errorf("before it is recorded, keys are %+v", m.encryption)
		}
		is := &v1alpha1.RotationStatus{Key: wanted.Key, ID: wanted.ID, Stage: v1alpha1.RotationDone}
		if m, err = ParseMaterial(r.Secret, is); err != nil || m.encryption[0].Name != want || len(m.encryption) != 1 {
			t.Errorf("it ends with %+v, %v", m.encryption, err)
		}
		FinishRotation(r.Secret, is)
		r.Cluster.Status.Rotation = is
	}
}

func TestNextStage(t *testing.T) {
	for _, key := range v1alpha1.RotatedKeys() {
		steps := 0
		for stage := v1alpha1.RotationAccept; !stage.Ended(); steps++ {
			next := NextStage(key, stage)
			if next == stage || steps > 10 {
				t.Fatalf("%s does not end", key)
			}
			if stage.Reversible() && !next.Reversible() && next != v1alpha1.RotationDrop {
				t.Errorf("%s: no way back from %s", key, next)
			}
			stage = next
		}
		if steps != map[bool]int{true: 4, false: 3}[key == v1alpha1.RotateCA] {
			t.Errorf("%s has %d stages", key, steps)
		}
	}
}

// A backup that was taken while Secrets were encrypted with a key that was taken back fits the cluster no more.
func TestChangedKeys(t *testing.T) {
	r := record(t, rack(t, "a", v1alpha1.TopologyProduction, 1))
	before := r.Secret.DeepCopy()
	for _, key := range v1alpha1.RotatedKeys() {
		during := r.at(t, key, v1alpha1.RotationSwap).Secret
		lies := key == v1alpha1.RotateEncryption || key == v1alpha1.RotateServiceAccount
		if changed := ChangedKeys(during.Data, before.Data); slices.Equal(changed, []string{string(key)}) != lies || len(changed) > 1 {
			t.Errorf("%s was taken back: %q", key, changed)
		}
		after := during.DeepCopy()
		FinishRotation(after, &v1alpha1.RotationStatus{Key: key, ID: "1", Stage: v1alpha1.RotationDrop})
		if changed := ChangedKeys(before.Data, after.Data); !slices.Equal(changed, []string{string(key)}) {
			t.Errorf("%s was rotated: %q", key, changed)
		}
	}
	if changed := ChangedKeys(before.Data, before.Data); changed != nil {
		t.Errorf("nothing was changed but %q", changed)
	}
}
