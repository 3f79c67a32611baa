"""Labs that stand: brought up once, used from any number of terminals, brought down when nobody wants them.

Five nouns. The *registry* knows the labs of this user by name: a folder for each, whose lock is held for as
long as the lab lives. The *server* is the process that holds a lab inside its universe, keeps its clients
asking and obeys whoever connects; it is started in the *background*, and the terminal that started it watches
until the lab stands. The *life* of a lab is what has happened in it so far: migrations with a result each,
events, what clients saw. A *node* is where one can be: a command or a shell started there is a process of the
universe, and ends with it.
"""
