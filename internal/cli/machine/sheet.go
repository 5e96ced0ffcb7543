package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/machine/racksheet"
)

// writers is how many Machines are written at once.
const writers = 8

// Import is what a rack sheet changes.
type Import struct {
	Changes []racksheet.Change `json:"changes"`
	// Notes are what was not read, or not checked.
	Notes []racksheet.Problem `json:"notes"`
	// Written says whether it was carried out.
	Written bool `json:"written"`

	// kept says why a Machine is not taken back.
	kept map[string]string
}

// PlanImport reads a sheet and compares it with the server. Nothing is written. The server checks every Machine, too.
func PlanImport(ctx context.Context, c client.Client, file string, data []byte, s racksheet.Settings) (*Import, error) {
	grids, err := racksheet.Read(file, data)
	if err != nil {
		return nil, sheetError(file, err)
	}
	world, err := worldOf(ctx, c)
	if err != nil {
		return nil, err
	}
	changes, notes, err := racksheet.Plan(grids, s, world)
	if err != nil {
		return nil, sheetError(file, err)
	}
	i := &Import{Changes: changes, Notes: notes}
	if i.Notes == nil {
		i.Notes = []racksheet.Problem{}
	}
	return i, sheetError(file, i.check(ctx, c))
}

// sheetError says that nothing was done, with all that is wrong.
func sheetError(file string, err error) error {
	var problems racksheet.Problems
	switch {
	case err == nil:
		return nil
	case errors.As(err, &problems):
		return exit.Refusedf("%s: nothing was written. Problems: %d\n%w", file, len(problems), err)
	}
	return exit.Refusedf("%s: %w", file, err)
}

func worldOf(ctx context.Context, c client.Client) (racksheet.World, error) {
	var machines v1alpha1.MachineList
	var subnets v1alpha1.SubnetList
	if err := c.List(ctx, &machines); err != nil {
		return racksheet.World{}, fmt.Errorf("list machines: %w", err)
	}
	if err := c.List(ctx, &subnets); err != nil {
		return racksheet.World{}, fmt.Errorf("list subnets: %w", err)
	}
	return racksheet.World{Machines: machines.Items, Subnets: subnets.Items}, nil
}

// Count is how many changes are of a kind.
func (i *Import) Count(a racksheet.Action) (n int) {
	for _, c := range i.Changes {
		if c.Action == a {
			n++
		}
	}
	return n
}

// Empty says that the server has what the sheet says.
func (i *Import) Empty() bool {
	return i.Count(racksheet.Create)+i.Count(racksheet.Update)+i.Count(actionDelete) == 0
}

// Print shows an import to a person.
func (i *Import) Print(out io.Writer) error {
	t := &cli.Table{Header: []string{"", "MACHINE", "LINE", "WHAT"}}
	for _, c := range i.Changes {
		var parts []string
		for _, f := range c.Fields {
			switch {
			case c.Action == racksheet.Create && f.Field == "name":
			case c.Action == racksheet.Create:
				parts = append(parts, f.Field+" "+f.To)
			default:
				parts = append(parts, fmt.Sprintf("%s: %s → %s", f.Field, orDash(f.From), orDash(f.To)))
			}
		}
		switch c.Action {
		case racksheet.Unchanged:
			continue
		case racksheet.Missing:
			parts = []string{"stands in a rack of the sheet and is in no line; it stays as it is"}
		case actionDelete:
			parts = []string{"was made by the import"}
		case actionKeep:
			parts = []string{i.kept[c.Machine]}
		}
		line := ""
		if c.Line > 0 {
			line = strings.TrimSpace(fmt.Sprintf("%s %d", c.Sheet, c.Line))
		}
		t.Add(string(c.Action), c.Machine, line, strings.Join(parts, ", "))
	}
	if len(t.Rows) > 0 {
		if err := t.Print(out, true); err != nil {
			return err
		}
	}
	if i.kept != nil {
		_, err := fmt.Fprintf(out, "%d to delete, %d to change back, %d stay as they are\n", i.Count(actionDelete), i.Count(racksheet.Update), i.Count(actionKeep))
		return err
	}
	_, err := fmt.Fprintf(out, "%d to create, %d to change, %d unchanged, %d missing from the sheet\n",
		i.Count(racksheet.Create), i.Count(racksheet.Update), i.Count(racksheet.Unchanged), i.Count(racksheet.Missing))
	return err
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// check has the server check what would be written, all of it before anything is.
func (i *Import) check(ctx context.Context, c client.Client) error {
	leaving := i.leaving()
	problems := make([]racksheet.Problems, len(i.Changes))
	err := i.each(ctx, writing, func(n int, change *racksheet.Change) error {
		after := change.After.DeepCopy()
		// What another Machine of the sheet gives up is free when this one is written.
		withoutClaims(after, func(claim string) bool { return leaving[claim] != "" && leaving[claim] != change.Machine })
		var err error
		if change.Before == nil {
			err = c.Create(ctx, after, client.DryRunAll, client.FieldOwner(objects.FieldManager))
		} else {
			err = c.Patch(ctx, after, client.MergeFrom(change.Before), client.DryRunAll, client.FieldOwner(objects.FieldManager))
		}
		if apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) {
			problems[n] = append(problems[n], racksheet.Problem{Sheet: change.Sheet, Line: change.Line, Message: err.Error()})
			return nil
		}
		return err
	})
	if all := slices.Concat(problems...); len(all) > 0 {
		return all
	}
	return err
}

// each calls do for all changes of these actions, several at once.
func (i *Import) each(ctx context.Context, actions []racksheet.Action, do func(int, *racksheet.Change) error) error {
	var group errgroup.Group
	group.SetLimit(writers)
	errs := make([]error, len(i.Changes))
	for n := range i.Changes {
		change := &i.Changes[n]
		if !slices.Contains(actions, change.Action) {
			continue
		}
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			if err := do(n, change); err != nil {
				errs[n] = fmt.Errorf("machine %s: %w", change.Machine, err)
			}
			return nil
		})
	}
	_ = group.Wait() // errors are in errs, all of them
	return errors.Join(append(errs, ctx.Err())...)
}

// leaving are the claims that move from one Machine of the sheet to another, with the one that gives them up.
func (i *Import) leaving() map[string]string {
	gives, wants := map[string]string{}, map[string]string{}
	for _, change := range i.Changes {
		if change.Action != racksheet.Create && change.Action != racksheet.Update {
			continue
		}
		for _, claim := range v1alpha1.MachineClaims(change.After) {
			wants[claim.Key()] = change.Machine
		}
		if change.Before != nil {
			for _, claim := range v1alpha1.MachineClaims(change.Before) {
				gives[claim.Key()] = change.Machine
			}
		}
	}
	for claim, name := range gives {
		if wants[claim] == "" || wants[claim] == name {
			delete(gives, claim)
		}
	}
	return gives
}

// withoutClaims takes from a Machine what it claims, where drop says so.
func withoutClaims(m *v1alpha1.Machine, drop func(claim string) bool) (dropped bool) {
	dropping := map[string]bool{}
	for _, claim := range v1alpha1.MachineClaims(m) {
		dropping[claim.Path.String()] = drop(claim.Key())
		dropped = dropped || drop(claim.Key())
	}
	ids, at := &m.Spec.Identifiers, field.NewPath("spec", "identifiers")
	var macs []string
	for n, mac := range ids.MACs {
		if !dropping[at.Child("macs").Index(n).String()] {
			macs = append(macs, mac)
		}
	}
	ids.MACs = macs
	for path, value := range map[string]*string{"bmcMAC": &ids.BMCMAC, "uuid": &ids.UUID, "serial": &ids.Serial} {
		if dropping[at.Child(path).String()] {
			*value = ""
		}
	}
	if dropping["spec.network.address"] {
		m.Spec.Network.Address = ""
	}
	return dropped
}

// Write carries the import out, as the state was that the plan looked at: a Machine that somebody else changed meanwhile is refused,
// and told. The same sheet again completes what did not come to its end.
func (i *Import) Write(ctx context.Context, c client.Client, now time.Time) error {
	id := now.UTC().Format("2006-01-02T15:04:05.000Z") + " " + Requester()
	for n := range i.Changes {
		change := &i.Changes[n]
		if change.Action != racksheet.Create && change.Action != racksheet.Update {
			continue
		}
		record := importRecord{ID: id, After: digestOf(change.After)}
		if change.Before != nil {
			record.Before, record.Labels = &change.Before.Spec, change.Before.Labels
		}
		text, err := json.Marshal(record)
		if err != nil {
			return err
		}
		if change.After.Annotations == nil {
			change.After.Annotations = map[string]string{}
		}
		change.After.Annotations[v1alpha1.AnnotationImport] = string(text)
	}
	return i.write(ctx, c)
}

// write deletes, frees what moves from one Machine to another, and then writes them all.
func (i *Import) write(ctx context.Context, c client.Client) error {
	i.Written = true
	if err := i.each(ctx, []racksheet.Action{actionDelete}, func(_ int, change *racksheet.Change) error {
		return client.IgnoreNotFound(c.Delete(ctx, change.Before, client.Preconditions{UID: &change.Before.UID, ResourceVersion: &change.Before.ResourceVersion}))
	}); err != nil {
		return err
	}
	leaving := i.leaving()
	if err := i.each(ctx, []racksheet.Action{racksheet.Update}, func(_ int, change *racksheet.Change) error {
		freed := change.Before.DeepCopy()
		if !withoutClaims(freed, func(claim string) bool { return leaving[claim] == change.Machine }) {
			return nil
		}
		if err := patch(ctx, c, freed, change.Before); err != nil {
			return err
		}
		change.Before = freed
		return nil
	}); err != nil {
		return err
	}
	return i.each(ctx, writing, func(_ int, change *racksheet.Change) error {
		if change.Before == nil {
			return c.Create(ctx, change.After, client.FieldOwner(objects.FieldManager))
		}
		return patch(ctx, c, change.After, change.Before)
	})
}

// writing are the actions that leave a Machine behind which was written.
var writing = []racksheet.Action{racksheet.Create, racksheet.Update}

// patch writes what a person can write of a Machine, as of the state that was looked at. The server writes status meanwhile, which
// does not matter; what somebody else has written does.
func patch(ctx context.Context, c client.Client, after, before *v1alpha1.Machine) error {
	const attempts = 5
	seen := before
	for attempt := 1; ; attempt++ {
		next := seen.DeepCopy()
		next.Spec, next.Labels = *after.Spec.DeepCopy(), after.Labels
		delete(next.Annotations, v1alpha1.AnnotationImport)
		if record, ok := after.Annotations[v1alpha1.AnnotationImport]; ok {
			if next.Annotations == nil {
				next.Annotations = map[string]string{}
			}
			next.Annotations[v1alpha1.AnnotationImport] = record
		}
		err := c.Patch(ctx, next, client.MergeFromWithOptions(seen, client.MergeFromWithOptimisticLock{}), client.FieldOwner(objects.FieldManager))
		if err == nil {
			*after = *next
			return nil
		}
		if !apierrors.IsConflict(err) || attempt == attempts {
			return err
		}
		if seen, err = Get(ctx, c, before.Name); err != nil {
			return err
		}
		if digestOf(seen) != digestOf(before) {
			return exit.Refusedf("somebody else has changed it since this was looked at")
		}
	}
}

// importRecord is what AnnotationImport holds.
type importRecord struct {
	// ID is the time of the import and who made it. Later ones are greater.
	ID string `json:"id"`
	// After is the digest of what the import wrote.
	After string `json:"after"`
	// Before and Labels are what the Machine had, nil for one that the import made.
	Before *v1alpha1.MachineSpec `json:"before,omitempty"`
	Labels map[string]string     `json:"labels,omitempty"`
}

// What taking an import back does, beside changing Machines back.
const (
	actionDelete racksheet.Action = "delete"
	actionKeep   racksheet.Action = "keep"
)

// PlanUndo says what of the last import can be taken back: what it made and nobody has changed or booted since, and what it changed
// and nobody has changed since.
func PlanUndo(ctx context.Context, c client.Client) (*Import, error) {
	world, err := worldOf(ctx, c)
	if err != nil {
		return nil, err
	}
	last, records := "", map[string]importRecord{}
	for i := range world.Machines {
		m := &world.Machines[i]
		var record importRecord
		if json.Unmarshal([]byte(m.Annotations[v1alpha1.AnnotationImport]), &record) == nil && record.ID != "" {
			records[m.Name] = record
			last = max(last, record.ID)
		}
	}
	if last == "" {
		return nil, exit.NotFoundf("no machine carries the record of an import, so there is nothing to take back")
	}
	undo := &Import{Notes: []racksheet.Problem{}, kept: map[string]string{}}
	for i := range world.Machines {
		m := &world.Machines[i]
		record, ok := records[m.Name]
		if !ok || record.ID != last {
			continue
		}
		change := racksheet.Change{Machine: m.Name, Before: m}
		switch {
		case digestOf(m) != record.After:
			change.Action, undo.kept[m.Name] = actionKeep, "was changed since, and stays as it is"
		case record.Before == nil && (m.Status.Inventory != nil || len(m.Status.Boots) > 0 || m.Status.Installed != nil):
			change.Action, undo.kept[m.Name] = actionKeep, "has booted since, and stays as it is"
		case record.Before == nil:
			change.Action = actionDelete
		default:
			change.Action, change.After = racksheet.Update, m.DeepCopy()
			change.After.Spec, change.After.Labels = *record.Before, record.Labels
			delete(change.After.Annotations, v1alpha1.AnnotationImport)
			change.Fields = racksheet.Differences(m, change.After)
		}
		undo.Changes = append(undo.Changes, change)
	}
	undo.keepContradictions(world.Machines)
	return undo, nil
}

// keepContradictions leaves Machines as they are that would get back what belongs to another one by now.
func (i *Import) keepContradictions(machines []v1alpha1.Machine) {
	for again := true; again; {
		again = false
		owners := map[string]string{}
		changing := map[string]bool{}
		for _, change := range i.Changes {
			changing[change.Machine] = change.Action != actionKeep
		}
		for n := range machines {
			if !changing[machines[n].Name] {
				for _, claim := range v1alpha1.MachineClaims(&machines[n]) {
					owners[claim.Key()] = machines[n].Name
				}
			}
		}
		for n := range i.Changes {
			change := &i.Changes[n]
			if change.Action != racksheet.Update {
				continue
			}
			for _, claim := range v1alpha1.MachineClaims(change.After) {
				if owner := owners[claim.Key()]; owner != "" {
					change.Action, again = actionKeep, true
					i.kept[change.Machine] = fmt.Sprintf("stays as it is, because its former %s %s belongs to machine %s", claim.Kind, claim.Value, owner)
				}
			}
		}
	}
}

// Undo takes back what PlanUndo found.
func (i *Import) Undo(ctx context.Context, c client.Client) error { return i.write(ctx, c) }

// digestOf stands for what a person can write of a Machine. What the server fills in is in it.
func digestOf(m *v1alpha1.Machine) string {
	spec := m.Spec.DeepCopy()
	if spec.BMC != nil && spec.BMC.Protocol == "" {
		spec.BMC.Protocol = "redfish"
	}
	text, err := json.Marshal(struct {
		Spec   *v1alpha1.MachineSpec
		Labels map[string]string `json:",omitempty"`
	}{spec, m.Labels})
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}
