package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
)

// SetBMC changes a machine's spec.bmc, which it must have.
func SetBMC(ctx context.Context, c client.Client, m *v1alpha1.Machine, change func(*v1alpha1.BMC)) error {
	_, err := update(ctx, c, m, func(m *v1alpha1.Machine) error {
		if m.Spec.BMC == nil {
			return NoBMC(m.Name)
		}
		change(m.Spec.BMC)
		return nil
	})
	return err
}

// PutBMC gives a machine this BMC, in place of what it had.
func PutBMC(ctx context.Context, c client.Client, m *v1alpha1.Machine, b v1alpha1.BMC) error {
	_, err := update(ctx, c, m, func(m *v1alpha1.Machine) error {
		m.Spec.BMC = &b
		return nil
	})
	return err
}

// HasMAC says whether a machine has a NIC with this address, by what a person wrote or what it reported.
func HasMAC(m *v1alpha1.Machine, mac string) bool {
	return slices.Contains(m.Spec.Identifiers.MACs, mac) ||
		m.Status.Inventory != nil && slices.ContainsFunc(m.Status.Inventory.NICs, func(n v1alpha1.NIC) bool { return n.MAC == mac })
}

// NoBMC says that a machine has none.
func NoBMC(name string) error {
	return exit.Refusedf("machine %s has no spec.bmc: write its address there first, for example\n  kubectl patch machine %s --type merge -p '{\"spec\":{\"bmc\":{\"address\":\"10.0.9.21\"}}}'", name, name)
}

// Credentials are what a person sets for BMCs.
type Credentials struct {
	// Secret is the name; empty: the one that the machines name already, or bmc-MACHINE for one machine.
	Secret string
	// User empty: as the Secret has it, or admin.
	User     string
	Password string
	// For are addresses and networks that the password may be sent to, beside those of the machines' BMCs.
	For []string
}

// SecretName is the name of the Secret that is written.
func (o Credentials) SecretName(machines []v1alpha1.Machine) (string, error) {
	if o.Secret != "" {
		return o.Secret, nil
	}
	var names []string
	for i := range machines {
		if b := machines[i].Spec.BMC; b != nil && b.CredentialsSecret != "" && !slices.Contains(names, b.CredentialsSecret) {
			names = append(names, b.CredentialsSecret)
		}
	}
	switch {
	case len(names) == 1:
		return names[0], nil
	case len(machines) == 1 && len(names) == 0:
		return "bmc-" + machines[0].Name, nil
	case len(names) > 1:
		return "", exit.Usagef("the machines have different Secrets (%s): choose one with --secret", strings.Join(names, ", "))
	}
	return "", exit.Usagef("name the Secret with --secret")
}

// Write keeps the credentials in the Secret, and has the machines use it.
func (o Credentials) Write(ctx context.Context, c client.Client, name string, machines []v1alpha1.Machine) (*v1alpha1.Secret, error) {
	addresses := slices.Clone(o.For)
	for i := range machines {
		b := machines[i].Spec.BMC
		if b == nil {
			return nil, NoBMC(machines[i].Name)
		}
		addresses = append(addresses, hostOf(b.Address))
	}
	if err := v1alpha1.ValidateBMCAddresses(addresses); err != nil {
		return nil, exit.Usagef("--for: %w", err)
	}
	secret := &v1alpha1.Secret{}
	err := c.Get(ctx, client.ObjectKey{Name: name}, secret)
	isNew := apierrors.IsNotFound(err)
	switch {
	case apierrors.IsForbidden(err):
		return nil, exit.Refusedf("Secrets are for administrators: %w", err)
	case err != nil && !isNew:
		return nil, fmt.Errorf("read Secret %s: %w", name, err)
	case !isNew && secret.Type != v1alpha1.SecretTypeBMC:
		return nil, exit.Refusedf("Secret %s holds something else (type %q)", name, secret.Type)
	}
	if isNew {
		secret = &v1alpha1.Secret{Type: v1alpha1.SecretTypeBMC, Data: map[string][]byte{}}
		secret.Name = name
	}
	old, _ := v1alpha1.ReadBMCCredentials(secret)
	all := slices.Concat(strings.Fields(string(secret.Data[v1alpha1.BMCSecretAddresses])), addresses)
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) == 0 {
		return nil, exit.Usagef("say with --for which addresses or networks the password may be sent to, or name machines")
	}
	secret.Data[v1alpha1.BMCSecretUsername] = []byte(cmp.Or(o.User, old.Username, "admin"))
	secret.Data[v1alpha1.BMCSecretPassword] = []byte(o.Password)
	secret.Data[v1alpha1.BMCSecretAddresses] = []byte(strings.Join(all, "\n"))
	if isNew {
		err = c.Create(ctx, secret)
	} else {
		err = c.Update(ctx, secret)
	}
	if err != nil {
		return nil, fmt.Errorf("write Secret %s: %w", name, err)
	}
	var errs []error
	for i := range machines {
		if machines[i].Spec.BMC.CredentialsSecret != name {
			errs = append(errs, SetBMC(ctx, c, &machines[i], func(b *v1alpha1.BMC) { b.CredentialsSecret = name }))
		}
	}
	return secret, errors.Join(errs...)
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return strings.Trim(address, "[]")
}
