-- Records an action of an operator: $1 who, $2 what, $3 to what, $4 to how many, $5 why, $6 the command's run, $7 letters.
insert into pillarbox.operator_action (who, what, target, count, note, run, letters)
values ($1, $2, $3, $4, $5, $6, $7)
