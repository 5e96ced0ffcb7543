package controllers

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
)

// Menu is the boot menu of a Subnet with its PIN.
type Menu struct {
	Subnet, CIDR string
	Menu         v1alpha1.BootMenu
	// PIN that mode PIN asks for. Where it is empty, NoPIN says why, for a person.
	PIN, NoPIN string
}

// MenuSink shows boot menus, and has what was chosen in them.
type MenuSink interface {
	// SetMenus gives it all menus that are on.
	SetMenus(menus []Menu)
	// Choices are those that are not recorded yet, by machine, and a channel that is closed when there is another.
	Choices() (map[string]v1alpha1.MenuChoice, <-chan struct{})
	// Recorded forgets a choice.
	Recorded(machine string, choice v1alpha1.MenuChoice)
}

// pinCheck is how often the Secrets of menus are read.
const pinCheck = 15 * time.Second

// menuPlans tells the boot services the menus of valid Subnets. It runs in every server that answers boots.
func menuPlans(d Deps) reconciler {
	return reconciler{
		name: "boot-menus", watches: []source.Source{whole(d, &v1alpha1.Subnet{})},
		do: func(ctx context.Context, _ string) (again time.Duration, err error) {
			all, err := NewPlans(d.Cache).Subnets(ctx)
			if err != nil {
				return 0, err
			}
			var menus []Menu
			for _, subnet := range validSubnets(all) {
				m := subnet.Spec.BootMenu
				if m == nil || m.Mode == "" || m.Mode == v1alpha1.BootMenuOff {
					continue
				}
				one := Menu{Subnet: subnet.Name, CIDR: subnet.Spec.CIDR, Menu: *m}
				if m.Mode == v1alpha1.BootMenuPIN {
					again = pinCheck
					if one.PIN, one.NoPIN, err = menuPIN(ctx, d.Client, &subnet); err != nil {
						return 0, err
					}
				}
				menus = append(menus, one)
			}
			d.Menus.SetMenus(menus)
			return again, nil
		},
	}
}

// menuPIN is the PIN of a Subnet's menu, or the problem with it.
func menuPIN(ctx context.Context, c client.Client, subnet *v1alpha1.Subnet) (pin, problem string, err error) {
	name := subnet.Spec.BootMenu.PINSecret
	secret := &v1alpha1.Secret{}
	switch err := c.Get(ctx, client.ObjectKey{Name: name}, secret); {
	case apierrors.IsNotFound(err):
		return "", fmt.Sprintf("the PIN was never set: there is no Secret %q. Run: coldrack subnet set-pin %s", name, subnet.Name), nil
	case err != nil:
		return "", "", fmt.Errorf("read Secret %s: %w", name, err)
	}
	if pin, err = v1alpha1.ReadMenuPIN(secret); err != nil {
		return "", err.Error() + ". Run: coldrack subnet set-pin " + subnet.Name, nil
	}
	return pin, "", nil
}

// choiceTime is how long a choice waits for its machine to be recorded.
const choiceTime = 10 * time.Minute

// recordChoices writes what was chosen at consoles into the Machines. Enrolment carries it out.
func recordChoices(ctx context.Context, d Deps) error {
	tick := time.NewTicker(time.Second / newcomersPerSecond)
	defer tick.Stop()
	for {
		choices, arrived := d.Menus.Choices()
		var retry <-chan time.Time
		for name, choice := range choices {
			done, err := recordChoice(ctx, d, name, choice)
			if err != nil {
				d.Log.Error("cannot record a choice in a boot menu", "machine", name, "entry", choice.Entry, "err", err)
			}
			if done || d.Now().Sub(choice.At) > choiceTime {
				d.Menus.Recorded(name, choice)
			} else {
				retry = time.After(time.Second)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-arrived:
		case <-retry:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// recordChoice says whether nothing is left to do. A machine that is not recorded yet, or that somebody else writes, is tried again.
func recordChoice(ctx context.Context, d Deps, name string, choice v1alpha1.MenuChoice) (done bool, err error) {
	m := &v1alpha1.Machine{}
	switch err := d.Client.Get(ctx, client.ObjectKey{Name: name}, m); {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	}
	if !m.Undecided() {
		d.Log.Warn("a choice in a boot menu comes too late: somebody has decided about the machine", "machine", name, "entry", choice.Entry)
		return true, nil
	}
	next := m.DeepCopy()
	next.SetMenu(choice)
	err = d.Client.Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsConflict(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d.Fleet.Put(next)
	d.Log.Info("choice in a boot menu recorded", "machine", name, "subnet", choice.Subnet, "entry", choice.Entry, "pin", choice.PIN, "by", choice.By, "from", choice.From)
	return true, nil
}
