package machine

import (
	"cmp"
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
)

// PINAnswer says where a PIN was written, and whether the Subnet asks for it.
type PINAnswer struct {
	Subnet string `json:"subnet"`
	Secret string `json:"secret"`
	Used   bool   `json:"used"`
}

// SetPIN writes the PIN of a Subnet's boot menu into the Secret that the Subnet names, or into secretName.
func SetPIN(ctx context.Context, c client.Client, subnetName, secretName, pin string) (PINAnswer, error) {
	if err := v1alpha1.ValidateMenuPIN(pin); err != nil {
		return PINAnswer{}, exit.Usagef("%w; nothing was written", err)
	}
	subnet := &v1alpha1.Subnet{}
	switch err := c.Get(ctx, client.ObjectKey{Name: subnetName}, subnet); {
	case apierrors.IsNotFound(err):
		return PINAnswer{}, exit.NotFoundf("there is no Subnet %s", subnetName)
	case err != nil:
		return PINAnswer{}, fmt.Errorf("read Subnet %s: %w", subnetName, err)
	}
	named := ""
	if subnet.Spec.BootMenu != nil {
		named = subnet.Spec.BootMenu.PINSecret
	}
	name := cmp.Or(secretName, named, "boot-menu-"+subnetName)
	secret := &v1alpha1.Secret{}
	err := c.Get(ctx, client.ObjectKey{Name: name}, secret)
	isNew := apierrors.IsNotFound(err)
	switch {
	case apierrors.IsForbidden(err):
		return PINAnswer{}, exit.Refusedf("Secrets are for administrators: %w", err)
	case err != nil && !isNew:
		return PINAnswer{}, fmt.Errorf("read Secret %s: %w", name, err)
	case !isNew && secret.Type != v1alpha1.SecretTypeMenuPIN:
		return PINAnswer{}, exit.Refusedf("Secret %s holds something else (type %q)", name, secret.Type)
	}
	secret.Name, secret.Type = name, v1alpha1.SecretTypeMenuPIN
	secret.Data = map[string][]byte{v1alpha1.MenuPINKey: []byte(pin)}
	if isNew {
		err = c.Create(ctx, secret)
	} else {
		err = c.Update(ctx, secret)
	}
	if err != nil {
		return PINAnswer{}, fmt.Errorf("write Secret %s: %w", name, err)
	}
	return PINAnswer{subnetName, name, named == name && subnet.Spec.BootMenu.Mode == v1alpha1.BootMenuPIN}, nil
}
