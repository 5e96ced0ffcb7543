package members

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
)

// A rotation has two keys of one sort. The Secret holds the one that was there, under its usual names, and the one that comes, under
// the same names with a prefix, beside the id of the rotation that it was made for. Which of them is used and which accepted follows from
// the stage that is recorded in the Cluster, so that one write moves every server from one stage to the next.
const (
	fileRotation = "rotation"
	nextPrefix   = "next-"
	// fileAuthorityNumber is which authority of the cluster ca is, counted from 1; absent for the first.
	fileAuthorityNumber = "ca.number"
	fileEncryptionName  = "encryption.name"
)

// rotatedFiles are what the Secret holds of a key, by name.
func rotatedFiles(key v1alpha1.RotatedKey) []string {
	switch key {
	case v1alpha1.RotateCA:
		return []string{"ca.crt", "ca.key", fileAuthorityNumber}
	case v1alpha1.RotateEtcdCA, v1alpha1.RotateFrontProxyCA:
		return []string{string(key) + ".crt", string(key) + ".key"}
	case v1alpha1.RotateServiceAccount:
		return []string{fileServiceAccountKey, fileServiceAccountPublic}
	case v1alpha1.RotateEncryption:
		return []string{fileEncryptionKey, fileEncryptionName}
	}
	return nil
}

// PrepareRotation puts the key that comes into a cluster's Secret, unless it is there. It says whether the Secret was changed and has to be
// written, before anything is recorded that needs it.
func PrepareRotation(secret *v1alpha1.Secret, cluster *v1alpha1.Cluster, wanted *v1alpha1.ClusterRotation, now time.Time) (changed bool, err error) {
	if string(secret.Data[fileRotation]) == wanted.ID {
		return false, nil
	}
	next, err := NewMaterial(cluster, now)
	if err != nil {
		return false, err
	}
	made, err := next.Secret(cluster)
	if err != nil {
		return false, err
	}
	made.Data[fileAuthorityNumber] = []byte(strconv.Itoa(authorityNumber(secret.Data) + 1))
	made.Data[fileEncryptionName] = []byte(nextEncryptionName(string(secret.Data[fileEncryptionName])))
	dropNext(secret)
	for _, name := range rotatedFiles(wanted.Key) {
		secret.Data[nextPrefix+name] = made.Data[name]
	}
	secret.Data[fileRotation] = []byte(wanted.ID)
	return true, nil
}

// FinishRotation makes the Secret hold one key of each sort again, after every node has the last stage of a rotation. It says whether
// the Secret was changed.
func FinishRotation(secret *v1alpha1.Secret, is *v1alpha1.RotationStatus) (changed bool) {
	if string(secret.Data[fileRotation]) != is.ID {
		return false
	}
	if is.Stage == v1alpha1.RotationDrop || is.Stage == v1alpha1.RotationDone {
		for _, name := range rotatedFiles(is.Key) {
			secret.Data[name] = secret.Data[nextPrefix+name]
		}
	}
	dropNext(secret)
	return true
}

func dropNext(secret *v1alpha1.Secret) {
	for name := range secret.Data {
		if name == fileRotation || strings.HasPrefix(name, nextPrefix) {
			delete(secret.Data, name)
		}
	}
}

func authorityNumber(data map[string][]byte) int {
	n, err := strconv.Atoi(string(data[fileAuthorityNumber]))
	if err != nil || n < 1 {
		return 1
	}
	return n
}

func nextEncryptionName(name string) string {
	n, err := strconv.Atoi(strings.TrimPrefix(name, encryptionKeyPrefix))
	if err != nil {
		n = 1
	}
	return encryptionKeyPrefix + strconv.Itoa(n+1)
}

// stageUse is what a stage does with the two keys of a rotation.
type stageUse struct {
	// makesNew: certificates, tokens and what is stored are made with the key that comes.
	makesNew bool
	// acceptsOld and acceptsNew say which are believed.
	acceptsOld, acceptsNew bool
}

var stageUses = map[v1alpha1.RotationStage]stageUse{
	v1alpha1.RotationAccept:    {false, true, true},
	v1alpha1.RotationPublish:   {false, true, true},
	v1alpha1.RotationSwap:      {true, true, true},
	v1alpha1.RotationDrop:      {true, false, true},
	v1alpha1.RotationDone:      {true, false, true},
	v1alpha1.RotationReturn:    {false, true, true},
	v1alpha1.RotationUndo:      {false, true, false},
	v1alpha1.RotationTakenBack: {false, true, false},
}

// NextStage is what follows a stage when all is done that belongs to it.
func NextStage(key v1alpha1.RotatedKey, stage v1alpha1.RotationStage) v1alpha1.RotationStage {
	switch stage {
	case v1alpha1.RotationAccept:
		if key == v1alpha1.RotateCA {
			return v1alpha1.RotationPublish
		}
		return v1alpha1.RotationSwap
	case v1alpha1.RotationPublish:
		return v1alpha1.RotationSwap
	case v1alpha1.RotationSwap:
		return v1alpha1.RotationDrop
	case v1alpha1.RotationDrop:
		return v1alpha1.RotationDone
	case v1alpha1.RotationReturn:
		return v1alpha1.RotationUndo
	case v1alpha1.RotationUndo:
		return v1alpha1.RotationTakenBack
	}
	return stage
}

// rotate makes the material that of a stage. fail explains what is wrong with a value of the Secret.
func (m *Material) rotate(secret *v1alpha1.Secret, is *v1alpha1.RotationStatus) error {
	if is == nil {
		return nil
	}
	use, known := stageUses[is.Stage]
	if !known {
		return fmt.Errorf("this version does not know stage %q of a rotation; a newer one began it", is.Stage)
	}
	if id := string(secret.Data[fileRotation]); id != is.ID {
		if use.acceptsOld && use.acceptsNew {
			return fmt.Errorf("the key of rotation %s is not in Secret %s (it has that of rotation %q); restore the Secret from a backup, or, if it was written just now, wait",
				is.ID, secret.Name, id)
		}
		return nil // one key is left, and it is the right one
	}
	if !use.acceptsNew {
		return nil
	}
	next := func(name string) []byte { return secret.Data[nextPrefix+name] }
	fail := func(name string, err error) error {
		return fmt.Errorf("Secret %s: data[%s]: %w; restore it from a backup", secret.Name, nextPrefix+name, err) //nolint:staticcheck // a kind's name
	}
	switch is.Key {
	case v1alpha1.RotateCA, v1alpha1.RotateEtcdCA, v1alpha1.RotateFrontProxyCA:
		name := kube.Authority(is.Key)
		coming, file, err := parseAuthority(next(string(name)+".crt"), next(string(name)+".key"), string(name))
		if err != nil {
			return fail(file, err)
		}
		old := m.trusted[name]
		m.trusted[name] = nil
		if use.acceptsOld {
			m.trusted[name] = old
		}
		m.trusted[name] = append(append([]byte(nil), m.trusted[name]...), coming.certPEM()...)
		if use.makesNew {
			m.authorities[name] = coming
		}
		if is.Key == v1alpha1.RotateCA && is.Stage != v1alpha1.RotationAccept {
			m.authorityNumber++
		}
	case v1alpha1.RotateServiceAccount:
		key, public, file, err := parseServiceAccount(next(fileServiceAccountKey), next(fileServiceAccountPublic))
		if err != nil {
			return fail(file, err)
		}
		switch {
		case !use.makesNew:
			m.serviceAccountPublic = append(append([]byte(nil), m.serviceAccountPublic...), public...)
		case use.acceptsOld:
			m.serviceAccountKey, m.serviceAccountPublic = key, append(append([]byte(nil), public...), m.serviceAccountPublic...)
		default:
			m.serviceAccountKey, m.serviceAccountPublic = key, public
		}
	case v1alpha1.RotateEncryption:
		key, err := parseEncryption(next(fileEncryptionKey), next(fileEncryptionName))
		if err != nil {
			return fail(fileEncryptionKey, err)
		}
		switch {
		case !use.makesNew:
			m.encryption = append(m.encryption, key)
		case use.acceptsOld:
			m.encryption = append([]kube.EncryptionKey{key}, m.encryption...)
		default:
			m.encryption = []kube.EncryptionKey{key}
		}
	default:
		return fmt.Errorf("this version does not know how to rotate %q; a newer one began it", is.Key)
	}
	return nil
}

// parseServiceAccount reads a key and the public keys beside it. file names what is wrong.
func parseServiceAccount(text, public []byte) (key, publics []byte, file string, err error) {
	parsed, err := parseKey(text)
	if err != nil {
		return nil, nil, fileServiceAccountKey, err
	}
	own, err := encodePublicKey(parsed.Public())
	if err != nil {
		return nil, nil, fileServiceAccountKey, err
	}
	// An administrator may have added further ones.
	if block, _ := pem.Decode(public); block == nil || string(encode("PUBLIC KEY", block.Bytes)) != string(own) {
		return nil, nil, fileServiceAccountPublic, fmt.Errorf("does not begin with the public key of %s", fileServiceAccountKey)
	}
	return text, public, "", nil
}

func parseEncryption(text, name []byte) (kube.EncryptionKey, error) {
	if key, err := base64.StdEncoding.DecodeString(string(text)); err != nil || len(key) != 32 {
		return kube.EncryptionKey{}, errors.New("is not 32 bytes in base64")
	}
	if len(name) == 0 {
		name = []byte(encryptionKeyPrefix + "1")
	}
	return kube.EncryptionKey{Name: string(name), Secret: string(text)}, nil
}

func newEncryptionKey(name string) (kube.EncryptionKey, error) {
	key := make([]byte, 32)
	_, err := rand.Read(key)
	return kube.EncryptionKey{Name: name, Secret: base64.StdEncoding.EncodeToString(key)}, err
}

// fingerprint tells an authority from another one of the same name.
func fingerprint(a authority) string {
	sum := sha256.Sum256(a.cert.Raw)
	return hex.EncodeToString(sum[:12])
}

// RotationMark stands for a stage, of which there is one for each of a rotation.
func RotationMark(is *v1alpha1.RotationStatus) string {
	if is == nil {
		return ""
	}
	return is.ID + " " + string(is.Stage)
}

// TokenSigner is the public key of the one that signs tokens of service accounts at present, nil without keys.
func (s *Set) TokenSigner(clusterName string) (crypto.PublicKey, error) {
	s.mu.Lock()
	c := s.clusters[clusterName]
	s.mu.Unlock()
	if c == nil || c.material == nil {
		return nil, refuse("cluster %q has no keys", clusterName)
	}
	key, err := parseKey(c.material.serviceAccountKey)
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}

// ChangedKeys names what two states of a cluster's Secret do not have in common. A key that comes counts where it may have made what
// lies in etcd: a backup of that time holds what the present key does not read, also when the rotation was taken back.
func ChangedKeys(then, now map[string][]byte) []string {
	var changed []string
	for _, key := range v1alpha1.RotatedKeys() {
		lies := key == v1alpha1.RotateEncryption || key == v1alpha1.RotateServiceAccount
		if slices.ContainsFunc(rotatedFiles(key), func(file string) bool {
			return !bytes.Equal(then[file], now[file]) || lies && then[nextPrefix+file] != nil
		}) {
			changed = append(changed, string(key))
		}
	}
	return changed
}
